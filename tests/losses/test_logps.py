"""Response log-probs against the plain computation: each sequence alone, all its logits, log_softmax, in float64.

Tolerances are float32's: one step costs 6e-8, two layers and a softmax a few of those. Log-probs agree to 1e-6
relative, gradients (norm of the difference, per weight) to 1e-5.
"""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config

from fed.data.collate import collate
from fed.model.policy import Policy, response_logps
from fed.model.probe import head_can_be_split
from losses.logps import summed_logps
from support.families import FAMILIES, GATED, LENGTHS, SPLIT, make_policy, plain_logps, ragged


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.allclose(found.double(), expected.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_log_probs_equal_the_plain_computation_in_float64(family):
    policy = make_policy(family)
    logps = response_logps(policy, collate(ragged()))
    chosen, rejected = plain_logps(copy.deepcopy(policy.model).double(), ragged())
    assert logps.chosen.dtype == torch.float32
    assert close(logps.chosen, chosen) and close(logps.rejected, rejected)
    assert [logps.chosen_tokens.tolist(), logps.rejected_tokens.tolist()] == [
        [float(lengths[1]) for lengths in LENGTHS],
        [float(lengths[2]) for lengths in LENGTHS],
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_the_plain_computation_in_float64(family):
    policy = make_policy(family)
    exact = copy.deepcopy(policy.model).double()
    weight = torch.linspace(-1, 2, len(LENGTHS))  # pairs must not be mixed up
    logps = response_logps(policy, collate(ragged()))
    (weight * (logps.chosen - 0.5 * logps.rejected)).sum().backward()
    chosen, rejected = plain_logps(exact, ragged())
    (weight * (chosen - 0.5 * rejected)).sum().backward()
    expected = {name: parameter.grad for name, parameter in exact.named_parameters()}
    # The true gradient of a key's bias is 0 (it shifts all scores of a query alike), so that a relative error needs a
    # floor: float32's own error at the size of the model's largest gradient.
    floor = 6e-8 * max(float(grad.norm()) for grad in expected.values())
    for name, parameter in policy.model.named_parameters():
        error = (parameter.grad.double() - expected[name]).norm()
        assert error <= 1e-5 * expected[name].norm() + floor, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_runs_on_response_rows_only_where_logits_are_its_very_output(family):
    assert make_policy(family).split_head == (family in SPLIT)


def test_a_cap_is_seen_even_where_a_random_models_logits_are_too_small_to_reach_it():
    tiny = Gemma2Config(**{**GATED, "initializer_range": 1e-4}, head_dim=8, final_logit_softcapping=30.0)
    model = AutoModelForCausalLM.from_config(tiny)
    assert model(torch.tensor([[1, 2, 3]])).logits.abs().max() < 0.01
    assert not head_can_be_split(model)


@pytest.mark.parametrize("family", ["llama, tied", "gpt2", "gpt-neox"])
@torch.no_grad()
def test_whole_logits_and_the_split_head_give_the_same(family):
    policy = make_policy(family)
    whole = Policy(policy.model, policy.tokenizer, policy.device, split_head=False)
    assert close(response_logps(policy, collate(ragged())).chosen, response_logps(whole, collate(ragged())).chosen)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_padding_changes_nothing(family):
    policy = make_policy(family)
    together = response_logps(policy, collate(ragged()))
    for n, pair in enumerate(ragged()):
        alone = response_logps(policy, collate([pair]))
        assert close(alone.chosen[0], together.chosen[n]) and close(alone.rejected[0], together.rejected[n])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_attention_mask_is_not_needed(family):
    policy, batch = make_policy(family), collate(ragged())
    lengths = [len(p.prompt) + len(r) - 1 for p in ragged() for r in (p.chosen, p.rejected)]
    mask = (torch.arange(batch.input_ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    logits = policy.model(input_ids=batch.input_ids, attention_mask=mask).logits.flatten(0, 1)[batch.rows]
    masked = summed_logps(logits, torch.nn.Identity(), batch.targets, batch.sizes)
    logps = response_logps(policy, batch)
    assert close(torch.stack([logps.chosen, logps.rejected], 1).flatten(), masked)


@torch.no_grad()
def test_chosen_only_batches_give_the_same_chosen_log_probs():
    policy = make_policy("llama, tied")
    supervised = response_logps(policy, collate(ragged(), paired=False))
    assert supervised.rejected is None and supervised.rejected_tokens is None
    assert close(supervised.chosen, response_logps(policy, collate(ragged())).chosen)


def test_summed_logps_by_hand():
    """Logits (0, ln 3) give probabilities 1/4 and 3/4; sequence 0 owns rows 0 and 1, sequence 1 row 2.

    Sums: ln 3/4 + ln 1/4, ln 3/4. Logits shifted by a constant (row 1) change nothing.
    """
    ln3 = torch.tensor(3.0).log()
    logits = torch.stack([torch.tensor([0.0, ln3]), torch.tensor([50.0, 50.0 + ln3]), torch.tensor([0.0, ln3])])
    found = summed_logps(logits, torch.nn.Identity(), torch.tensor([1, 0, 1]), [2, 1])
    assert torch.allclose(found, torch.tensor([3 / 16, 3 / 4]).log(), rtol=1e-5, atol=1e-7)


def test_sums_are_float32_even_where_the_model_computes_in_bfloat16():
    hidden = torch.randn(300, 8, dtype=torch.bfloat16)
    found = summed_logps(hidden, torch.nn.Identity(), torch.zeros(300).long(), [300])
    assert found.dtype == torch.float32
