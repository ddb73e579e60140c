import functools
import math
from dataclasses import replace

import pytest
import torch

from fed.data.examples import PairLogps
from fed.intervals import wilson
from fed.model.evaluation import evaluate, pair_metrics
from fed.model.policy import pair_logps
from fed.model.references import with_reference
from losses.logps import Logps
from losses.preference import dpo, ipo
from losses.sft import sft
from support.pairs import examples


def logps(chosen: list[float], rejected: list[float]) -> Logps:
    return Logps(torch.tensor(chosen, dtype=torch.float64), torch.tensor(rejected, dtype=torch.float64))


def test_pair_metrics_by_hand():
    """Policy minus reference is 1, 0, -1 for chosen and 0, 0, 2 for rejected: one right, one tie, one wrong.

    beta = 0.5: margin 0.5 * (1 + 0 - 3) / 3 = -1/3; rewards 0.5 * 0 and 0.5 * 2/3; log-ratio -(1 + 0 + 1) / 3 / 2.
    """
    policy, reference = logps([-1, -2, -3], [-4, -4, -4]), logps([-2, -2, -2], [-4, -4, -6])
    assert pair_metrics(policy, reference, beta=0.5) == pytest.approx(
        {
            "accuracy": 1 / 3,
            "accuracy_low": wilson(1 / 3, 3)[0],
            "accuracy_high": wilson(1 / 3, 3)[1],
            "ties": 1 / 3,
            "margin": -1 / 3,
            "log_ratio": -1 / 3,
            "reward_chosen": 0.0,
            "reward_rejected": 1 / 3,
            "logps_chosen": -2.0,
            "logps_rejected": -4.0,
            "examples": 3,
        },
        rel=1e-12,
    )


def test_beta_scales_rewards_and_margin_and_nothing_else():
    policy, reference = logps([-1, -2, -3], [-4, -4, -4]), logps([-2, -2, -2], [-4, -4, -6])
    one, three = (pair_metrics(policy, reference, beta=beta) for beta in (1.0, 3.0))
    scaled = {"margin", "reward_chosen", "reward_rejected"}
    assert three == pytest.approx({name: value * (3 if name in scaled else 1) for name, value in one.items()})


def test_swapping_chosen_and_rejected_turns_the_margin_and_mirrors_the_accuracy():
    policy, reference = logps([-1, -2, -3], [-4, -4, -4]), logps([-2, -2, -2], [-4, -4, -6])
    turned = (Logps(policy.rejected, policy.chosen), Logps(reference.rejected, reference.chosen))
    before, after = pair_metrics(policy, reference, beta=1.0), pair_metrics(*turned, beta=1.0)
    assert after["margin"] == -before["margin"]
    assert after["accuracy"] == pytest.approx(1 - before["accuracy"] - before["ties"])
    assert (after["ties"], after["log_ratio"]) == (before["ties"], before["log_ratio"])


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_untrained_weights_tie_exactly(policy, batch_size):
    pairs = with_reference(policy, examples(11), batch_size=batch_size, cache=None, weights_hash="")
    loss = functools.partial(dpo, beta=0.1)
    found = evaluate(policy, pairs, loss=loss, beta=0.1, batch_size=batch_size)
    assert (found["accuracy"], found["ties"], found["margin"], found["log_ratio"]) == (0.0, 1.0, 0.0, 0.0)
    assert (found["reward_chosen"], found["reward_rejected"]) == (0.0, 0.0)
    assert found["accuracy_low"] == 0.0 and 0.2 < found["accuracy_high"] < 0.3, "11 ties leave much unknown"
    assert math.copysign(1, found["log_ratio"]) == 1, "printed as 0, not -0"
    assert found["loss"] == pytest.approx(math.log(2), rel=1e-12)


def test_metrics_compare_the_weights_now_with_the_column(policy):
    """The column is set by hand to the policy's own log-probs, shifted: chosen by +-1 in turn, rejected by 0."""
    pairs = examples(4)
    own = pair_logps(policy, pairs, batch_size=4)
    shifts = [1.0, -1.0, 1.0, 1.0]
    pairs = [
        replace(pair, reference=PairLogps(p.chosen - shift, p.rejected))
        for pair, p, shift in zip(pairs, own, shifts, strict=True)
    ]
    found = evaluate(policy, pairs, loss=functools.partial(dpo, beta=2.0), beta=2.0, batch_size=4)
    assert (found["accuracy"], found["ties"], found["examples"]) == (0.75, 0.0, 4)
    assert found["margin"] == pytest.approx(2.0 * 0.5, rel=1e-12)
    assert found["log_ratio"] == pytest.approx(-0.25, rel=1e-12)
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(0.75, 4)
    expected = (3 * math.log1p(math.exp(-2)) + math.log1p(math.exp(2))) / 4
    assert found["loss"] == pytest.approx(expected, rel=1e-12)


def test_the_mean_is_over_pairs_and_not_over_batches(policy):
    """Five pairs in batches of four: a mean of batch means would give the odd pair the weight of four."""
    pairs = with_reference(policy, examples(5), batch_size=4, cache=None, weights_hash="")
    found = evaluate(policy, pairs, loss=sft, beta=1.0, batch_size=4)
    chosen = [pair.chosen for pair in pair_logps(policy, pairs, batch_size=4)]
    assert found["loss"] == pytest.approx(-sum(chosen) / 5, rel=1e-12)
    assert found["logps_chosen"] == pytest.approx(sum(chosen) / 5, rel=1e-12)


def test_the_loss_sees_float64_and_token_counts(policy):
    pairs = with_reference(policy, examples(5), batch_size=4, cache=None, weights_hash="")

    def look(policy: Logps, reference: Logps) -> torch.Tensor:
        for side in (policy, reference):
            assert all(column.dtype == torch.float64 for column in side)
            assert side.chosen_tokens.tolist() == [len(pair.chosen) for pair in pairs]
            assert side.rejected_tokens.tolist() == [len(pair.rejected) for pair in pairs]
        return ipo(policy, reference, beta=0.1)

    assert evaluate(policy, pairs, loss=look, beta=1.0, batch_size=4)["loss"] == pytest.approx(25.0, rel=1e-12)


def test_evaluation_needs_no_gradient_and_changes_no_weight(policy):
    pairs = with_reference(policy, examples(5), batch_size=4, cache=None, weights_hash="")
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    evaluate(policy, pairs, loss=sft, beta=1.0, batch_size=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.model.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.model.parameters())


def test_pairs_without_a_reference_are_refused(policy):
    pairs = with_reference(policy, examples(3), batch_size=4, cache=None, weights_hash="")
    with pytest.raises(ValueError, match="3 of 4 pairs have them"):
        evaluate(policy, [*pairs, examples(1)[0]], loss=sft, beta=1.0, batch_size=4)
    with pytest.raises(ValueError, match="0 of 0 pairs"):
        evaluate(policy, [], loss=sft, beta=1.0, batch_size=4)
