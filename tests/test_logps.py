"""Response log-probs against the plain computation: each sequence alone, all its logits, log_softmax, in float64.

Tolerances are float32's: one step costs 6e-8, two layers and a softmax a few of those. Log-probs agree to 1e-6
relative, gradients (norm of the difference, per weight) to 1e-5.
"""

import copy

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
)

from fed.batches import Example, collate
from fed.demo import demo_tokenizer
from fed.loading import _head_can_be_split
from fed.policy import Policy, response_logps
from fed.seeding import generator
from losses.logps import summed_logps

VOCABULARY = 47
# A range of 0.3 spreads the logits over several nats; the usual 0.02 would make every model nearly uniform.
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
GATED = {**COMMON, "intermediate_size": 24, "num_key_value_heads": 1}
GPT2 = {name: COMMON[name] for name in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")}
SPLIT = {
    "llama, tied": LlamaConfig(**GATED, tie_word_embeddings=True),
    "llama, untied": LlamaConfig(**GATED, tie_word_embeddings=False),
    "gpt2": GPT2Config(**GPT2, n_embd=16, n_layer=2, n_head=2, n_positions=64),
    "gpt-neox": GPTNeoXConfig(**COMMON, intermediate_size=24),
    "qwen2": Qwen2Config(**GATED),
}
WHOLE = {
    "gemma2, logits capped": Gemma2Config(**GATED, head_dim=8, final_logit_softcapping=3.0),
    "cohere, logits scaled": CohereConfig(**GATED, logit_scale=0.25),
    "granite, logits divided": GraniteConfig(**GATED, logits_scaling=4.0),
    "opt, decoder inside": OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, word_embed_proj_dim=16, init_std=0.3,
    ),
}  # fmt: skip
FAMILIES = {**SPLIT, **WHOLE}
# (prompt, chosen, rejected) tokens: single-token prompts and responses, a long prompt, a long response.
LENGTHS = [(1, 1, 1), (1, 7, 2), (3, 1, 5), (40, 2, 3), (5, 4, 4), (2, 30, 1)]


def make_policy(family: str) -> Policy:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    return Policy(model, demo_tokenizer(), torch.device("cpu"), split_head=_head_can_be_split(model))


def ragged() -> list[Example]:
    rng = generator(0, "ragged")
    return [
        Example(*(tuple(int(i) for i in rng.integers(0, VOCABULARY, length)) for length in lengths))
        for lengths in LENGTHS
    ]


def plain_logp(model: torch.nn.Module, prompt: tuple[int, ...], response: tuple[int, ...]) -> torch.Tensor:
    logps_TV = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return torch.stack([logps_TV[len(prompt) + i - 1, token] for i, token in enumerate(response)]).sum()


def plain_logps(model: torch.nn.Module, pairs: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    chosen = torch.stack([plain_logp(model, pair.prompt, pair.chosen) for pair in pairs])
    return chosen, torch.stack([plain_logp(model, pair.prompt, pair.rejected) for pair in pairs])


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
    assert not _head_can_be_split(model)


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
    lengths = [len(p.prompt) + len(r) for side in ("chosen", "rejected") for p in ragged() for r in [getattr(p, side)]]
    mask = (torch.arange(batch.input_ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    logits = policy.model(input_ids=batch.input_ids, attention_mask=mask).logits.flatten(0, 1)[batch.rows]
    masked = summed_logps(logits, torch.nn.Identity(), batch.targets, batch.sequence, len(lengths))
    logps = response_logps(policy, batch)
    assert close(torch.cat([logps.chosen, logps.rejected]), masked)


@torch.no_grad()
def test_chosen_only_batches_give_the_same_chosen_log_probs():
    policy = make_policy("llama, tied")
    supervised = response_logps(policy, collate(ragged(), paired=False))
    assert supervised.rejected is None and supervised.rejected_tokens is None
    assert close(supervised.chosen, response_logps(policy, collate(ragged())).chosen)


def test_summed_logps_by_hand():
    """Logits (0, ln 3) give probabilities 1/4 and 3/4; sequence 0 owns rows 0 and 2, sequence 1 none, sequence 2 row 1.

    Sums: ln 3/4 + ln 1/4, 0, ln 3/4. Logits shifted by a constant (row 2) change nothing.
    """
    ln3 = torch.tensor(3.0).log()
    logits = torch.stack([torch.tensor([0.0, ln3]), torch.tensor([0.0, ln3]), torch.tensor([50.0, 50.0 + ln3])])
    found = summed_logps(logits, torch.nn.Identity(), torch.tensor([1, 1, 0]), torch.tensor([0, 2, 0]), 3)
    expected = torch.tensor([3 / 16, 1.0, 3 / 4]).log()
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-7)


def test_sums_are_float32_even_where_the_model_computes_in_bfloat16():
    hidden = torch.randn(300, 8, dtype=torch.bfloat16)
    found = summed_logps(hidden, torch.nn.Identity(), torch.zeros(300).long(), torch.zeros(300).long(), 1)
    assert found.dtype == torch.float32
    assert close(found[0], hidden.double().log_softmax(-1)[:, 0].sum())
