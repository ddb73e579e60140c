import math

import numpy as np
import pytest
import torch

from losses.anchor import anchor
from losses.logps import Logps
from losses.preference import dpo, ipo, log_ratio_margin
from losses.sft import sft

# h = (-1 - -2) - (-1.5 - -1.5) = 1 and h = (-3 - -1) - (-1 - -2) = -3
POLICY = Logps(
    torch.tensor([-1.0, -3.0]), torch.tensor([-2.0, -1.0]), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
)
REFERENCE = Logps(
    torch.tensor([-1.5, -1.0]), torch.tensor([-1.5, -2.0]), torch.tensor([1.0, 2.0]), torch.tensor([2.0, 1.0])
)


def swapped(logps: Logps) -> Logps:
    return Logps(logps.rejected, logps.chosen, logps.rejected_tokens, logps.chosen_tokens)


def random_logps(seed: int, pairs: int = 50) -> Logps:
    """Draw sums of log-probs like those of long responses, with lengths."""
    rng = np.random.default_rng(seed)
    columns = [-rng.uniform(1, 300, pairs), -rng.uniform(1, 300, pairs), rng.integers(1, 90, pairs)]
    return Logps(*(torch.tensor(column, dtype=torch.float32) for column in [*columns, rng.integers(1, 90, pairs)]))


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.logaddexp(0.0, -x)


def as_float64(logps: Logps) -> list[np.ndarray]:
    return [column.double().numpy() for column in logps]


def close(found: torch.Tensor, expected: object) -> bool:
    return np.allclose(found.double().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_dpo_by_hand():
    """beta = 0.5: beta h = 0.5 and -1.5; -log sigmoid(z) = log(1 + e^-z) = log(1.606531) and log(5.481689)."""
    assert close(log_ratio_margin(POLICY, REFERENCE), [1.0, -3.0])
    assert close(dpo(POLICY, REFERENCE, beta=0.5), [0.4740770, 1.7014133])


def test_label_smoothing_by_hand():
    """eps = 0.1 mixes in log(1 + e^z): 0.9 * 0.4740770 + 0.1 * 0.9740770 and 0.9 * 1.7014133 + 0.1 * 0.2014133."""
    assert close(dpo(POLICY, REFERENCE, beta=0.5, label_smoothing=0.1), [0.5240770, 1.5514133])


def test_reference_free_dpo_ignores_the_reference_by_hand():
    """h = 1 and -2, so beta h = 0.5 and -1: log(1 + e^-0.5) and log(1 + e)."""
    expected = [0.4740770, 1.3132617]
    assert close(dpo(POLICY, REFERENCE, beta=0.5, reference_free=True), expected)
    assert close(dpo(POLICY, None, beta=0.5, reference_free=True), expected)


def test_ipo_by_hand():
    """Means: policy -1 and -1.5 chosen, -1 and -1 rejected; reference -1.5 and -0.5, -0.75 and -2.

    h_mean = 0 - -0.75 = 0.75 and -0.5 - 1.5 = -2; beta = 0.5 aims at 1: (0.75 - 1)^2 and (-2 - 1)^2.
    """
    assert close(ipo(POLICY, REFERENCE, beta=0.5), [0.0625, 9.0])


def test_sft_by_hand():
    """The loss is minus the chosen sums, whatever else is given."""
    assert close(sft(POLICY, REFERENCE), [1.0, 3.0])
    assert close(sft(Logps(POLICY.chosen)), [1.0, 3.0])


def test_anchor_by_hand():
    """(-1 + 1.5)^2 + (-2 + 1.5)^2 = 0.5 and (-3 + 1)^2 + (-1 + 2)^2 = 5.

    Per token: (-1 + 1.5)^2 + (-1 + 0.75)^2 = 0.3125 and (-1.5 + 0.5)^2 + (-1 + 2)^2 = 2.
    """
    assert close(anchor(POLICY, REFERENCE), [0.5, 5.0])
    assert close(anchor(POLICY.per_token(), REFERENCE.per_token()), [0.3125, 2.0])
    assert close(anchor(Logps(POLICY.chosen), Logps(REFERENCE.chosen)), [0.25, 4.0])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_losses_equal_their_formulas_in_float64(seed, label_smoothing):
    policy, reference = random_logps(seed), random_logps(seed + 100)
    (c, r, nc, nr), (rc, rr, _, _) = as_float64(policy), as_float64(reference)
    reference = reference._replace(chosen_tokens=policy.chosen_tokens, rejected_tokens=policy.rejected_tokens)
    for beta in (0.01, 0.1, 1.0):
        z = beta * ((c - r) - (rc - rr))
        expected = -(1 - label_smoothing) * log_sigmoid(z) - label_smoothing * log_sigmoid(-z)
        # float32 sums of hundreds of nats are exact to 3e-5 nats: what is left of beta h is that, times beta.
        found = dpo(policy, reference, beta=beta, label_smoothing=label_smoothing).double().numpy()
        assert np.allclose(found, expected, rtol=1e-6, atol=3e-5 * beta)
        exact = [Logps(*(column.double() for column in logps)) for logps in (policy, reference)]
        assert close(dpo(*exact, beta=beta, label_smoothing=label_smoothing), expected)
        h_mean = (c / nc - r / nr) - (rc / nc - rr / nr)
        assert close(ipo(*exact, beta=beta), (h_mean - 1 / (2 * beta)) ** 2)
    assert close(sft(policy), -c)
    assert close(anchor(policy, reference), (c - rc) ** 2 + (r - rr) ** 2)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_swapping_chosen_and_rejected_turns_the_margin_and_the_loss_round(beta):
    """DPO: loss(-h) - loss(h) = beta h. IPO: loss(-h) - loss(h) = 4 h_mean / (2 beta)."""
    policy, reference = random_logps(1), random_logps(2)
    h = log_ratio_margin(policy, reference)
    assert torch.equal(log_ratio_margin(swapped(policy), swapped(reference)), -h)
    exact = [Logps(*(column.double() for column in logps)) for logps in (policy, reference)]
    turned = [swapped(logps) for logps in exact]
    assert close(dpo(*turned, beta=beta) - dpo(*exact, beta=beta), beta * log_ratio_margin(*exact))
    h_mean = log_ratio_margin(exact[0].per_token(), exact[1].per_token())
    assert close(ipo(*turned, beta=beta) - ipo(*exact, beta=beta), 2 * h_mean / beta)


def test_flipping_all_labels_is_label_smoothing_of_one():
    policy, reference = random_logps(3), random_logps(4)
    flipped = dpo(swapped(policy), swapped(reference), beta=0.1)
    assert torch.equal(dpo(policy, reference, beta=0.1, label_smoothing=1.0), flipped)


@pytest.mark.parametrize(("margin", "sign"), [(0.0, -1), (4.0, -1), (6.0, 1)])
def test_label_smoothing_pushes_margins_back_beyond_its_optimum(margin, sign):
    """eps = 0.1: the loss is least where sigmoid(beta h) = 0.9; at beta = 0.5 that is h = 2 ln 9 = 4.39."""
    chosen = torch.tensor([margin - 1.0], requires_grad=True)
    policy, reference = Logps(chosen, torch.tensor([-1.0])), Logps(torch.zeros(1), torch.zeros(1))
    dpo(policy, reference, beta=0.5, label_smoothing=0.1).sum().backward()
    assert math.copysign(1, chosen.grad.item()) == sign
    (plain,) = torch.autograd.grad(dpo(policy, reference, beta=0.5).sum(), chosen)
    assert plain.item() < 0


def test_dpo_stays_finite_at_extreme_margins():
    """log sigmoid(-1000) = -1000 to float32; the naive log(1 / (1 + e^1000)) would be minus infinity."""
    chosen = torch.tensor([-1000.0], requires_grad=True)
    zero = Logps(torch.zeros(1), torch.zeros(1))
    loss = dpo(Logps(chosen, torch.zeros(1)), zero, beta=1.0)
    loss.sum().backward()
    assert loss.item() == 1000.0
    assert chosen.grad.item() == -1.0


@pytest.mark.parametrize("per_token", [False, True])
def test_the_anchor_and_its_gradient_are_zero_while_nothing_has_changed(per_token):
    received = random_logps(5)
    policy = Logps(*(column.clone().requires_grad_() for column in received[:2]), *received[2:])
    pair = (policy.per_token(), received.per_token()) if per_token else (policy, received)
    losses = anchor(*pair)
    losses.sum().backward()
    assert torch.equal(losses, torch.zeros_like(losses))
    assert not policy.chosen.grad.any() and not policy.rejected.grad.any()


@pytest.mark.parametrize("loss", [dpo, ipo])
def test_a_preference_loss_without_rejected_responses_is_refused(loss):
    chosen_only = Logps(torch.zeros(2), None, torch.ones(2))
    with pytest.raises(ValueError, match="needs rejected responses"):
        loss(chosen_only, chosen_only, beta=0.1)


@pytest.mark.parametrize("loss", [dpo, ipo])
def test_a_missing_reference_is_refused_instead_of_taken_for_uniform(loss):
    with pytest.raises(ValueError, match="compares with a reference"):
        loss(POLICY, None, beta=0.1)


@pytest.mark.parametrize("lost", ["chosen_tokens", "rejected_tokens"])
def test_means_without_token_counts_are_refused(lost):
    with pytest.raises(ValueError, match="need chosen_tokens and rejected_tokens"):
        ipo(POLICY._replace(**{lost: None}), REFERENCE, beta=0.1)


def test_only_sft_says_that_it_reads_chosen_responses_alone():
    assert sft.supervised
    assert not any(hasattr(loss, "supervised") for loss in (dpo, ipo))
