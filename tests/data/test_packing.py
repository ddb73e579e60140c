"""Packed, prompt-shared and fused steps give the plain computation in float64, for any model and any lengths."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPTJConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    PhimoeConfig,
)

from fed.data.chat import PairIds
from fed.data.collate import PADDED, Layout
from fed.data.examples import Example, PairLogps
from fed.data.tokens import Lengths, truncate
from fed.model.policy import Policy, pair_logps, response_logps, total_loss
from fed.model.probe import start_packing
from fed.seeding import generator
from losses.logps import Logps
from losses.preference import dpo
from support.families import FAMILIES, SPLIT, VOCABULARY, make_policy, plain_logps, ragged

LAYOUTS = {
    "padded, fused": Layout(packing=False),
    "packed": Layout(prefix_sharing=False, fused_head=False),
    "shared": Layout(fused_head=False),
    "all": Layout(),
}
PACKING = [name for name in FAMILIES if name not in ("gemma2, logits capped",)]
POLICIES: dict[str, Policy] = {}


def packing_policy(family: str) -> Policy:
    """Make a policy once for all tests: its weights are only read."""
    if family not in POLICIES:
        policy = make_policy(family)
        assert start_packing(policy.model, 64) is None
        POLICIES[family] = policy
    return POLICIES[family]


def moved(policy: Policy, device: torch.device) -> Policy:
    """Return a copy of the policy on the device."""
    return replace(policy, model=copy.deepcopy(policy.model).to(device), device=device)


def with_columns(pairs: list[Example]) -> list[Example]:
    return [replace(pair, reference=PairLogps(-2.0 * n - 3, -1.5 * n - 4)) for n, pair in enumerate(pairs)]


def loss(policy: Logps, reference: Logps | None, received: Logps | None = None) -> torch.Tensor:
    """Add to DPO a part whose gradient does not vanish where both responses are the same."""
    return dpo(policy, reference, beta=0.5) - 0.1 * policy.chosen


def exact_gradients(policy: Policy, pairs: list[Example]) -> tuple[float, dict[str, torch.Tensor]]:
    model = copy.deepcopy(policy.model).cpu().double()
    if model.config._attn_implementation == "packed":
        model.set_attn_implementation("sdpa")
    chosen, rejected = plain_logps(model, pairs)
    reference = Logps(*(torch.tensor([p.reference[i] for p in pairs], dtype=torch.float64) for i in (0, 1)))
    total = loss(Logps(chosen, rejected), reference).sum()
    total.backward()
    return float(total.detach()), {name: parameter.grad for name, parameter in model.named_parameters()}


def check(policy: Policy, pairs: list[Example]) -> None:
    exact, expected = exact_gradients(policy, pairs)
    policy.model.zero_grad()
    total, _ = total_loss(policy, policy.collate(pairs), loss)
    total.backward()
    assert float(total.detach()) == pytest.approx(exact, rel=1e-5, abs=1e-6)
    floor = 3e-7 * max(float(grad.norm()) for grad in expected.values())
    for name, parameter in policy.model.named_parameters():
        error = (parameter.grad.cpu().double() - expected[name]).norm()
        assert error <= 1e-5 * expected[name].norm() + floor, name


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("family", PACKING)
def test_loss_and_every_gradient_equal_the_plain_computation_in_float64(family, layout, device):
    """Heads of 8 numbers are too small for FlexAttention, so a GPU attends segment by segment."""
    check(replace(moved(packing_policy(family), device), layout=layout), with_columns(ragged()))


WIDE = LlamaConfig(
    vocab_size=VOCABULARY, hidden_size=128, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, max_position_embeddings=512, initializer_range=0.1, tie_word_embeddings=True,
)  # fmt: skip


@pytest.mark.parametrize(("precision", "near"), [(None, 5e-3), (torch.bfloat16, 0.05)], ids=["float32", "bfloat16"])
def test_long_packed_rows_give_the_padded_loss_and_gradients(device, precision, near):
    """On a GPU by FlexAttention against padded rows by torch's own attention, in blocks of 128 tokens and beyond."""
    rng = generator(0, "long")
    lengths = [(120, 60, 90), (7, 130, 3), (200, 1, 40), (33, 20, 20)]
    pairs = [Example(*(tuple(rng.integers(0, VOCABULARY, n).tolist()) for n in pair)) for pair in lengths]
    found = {}
    for name, layout in {"packed": Layout(), "padded": PADDED}.items():
        model = made(copy.deepcopy(WIDE)).to(device)
        if layout.packing:
            assert start_packing(model, 512) is None
        policy = Policy(model, None, device, precision, layout=layout)
        total, logps = total_loss(policy, policy.collate(with_columns(pairs)), loss)
        total.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        found[name] = total.detach(), torch.cat([logps.chosen, logps.rejected]).float(), gradient
    for packed, padded in zip(found["packed"], found["padded"], strict=True):
        assert (packed - padded).norm() <= (near if device.type == "cuda" or precision else 1e-5) * padded.norm()


tokens = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12)


@st.composite
def drawn_pairs(draw) -> list[Example]:
    """Draw ragged pairs, many with one-token responses, some cut as too long rows are; none is read with equal ones."""
    row = st.tuples(tokens, tokens, tokens, st.sampled_from(["keep_end", "keep_start"]), st.just(14), st.just(6))
    pair = row.map(lambda drawn: truncate(PairIds(*drawn[:3]), drawn[3], Lengths(*drawn[4:]))).filter(
        lambda pair: pair.chosen != pair.rejected
    )
    return draw(st.lists(pair, min_size=1, max_size=5))


@pytest.mark.parametrize("family", SPLIT)
@settings(max_examples=15, deadline=None)
@given(pairs=drawn_pairs())
def test_any_ragged_batch_gives_the_plain_loss_and_gradients(family, pairs):
    check(replace(packing_policy(family), layout=Layout()), with_columns(pairs))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@torch.no_grad()
def test_evaluation_gives_the_plain_log_probs(layout):
    policy = packing_policy("llama, tied")
    plain = response_logps(replace(policy, layout=PADDED), replace(policy, layout=PADDED).collate(ragged()))
    for batch_size in (1, 4, 6):
        found = pair_logps(replace(policy, layout=layout), ragged(), batch_size=batch_size)
        torch.testing.assert_close(torch.tensor([pair.chosen for pair in found]), plain.chosen)
        torch.testing.assert_close(torch.tensor([pair.rejected for pair in found]), plain.rejected)


@torch.no_grad()
def test_a_pair_does_not_see_its_neighbours_nor_rejected_chosen():
    policy = replace(packing_policy("llama, tied"), layout=Layout())
    pair = ragged()[2]
    others = [replace(ragged()[3], prompt=(1, 2)), replace(pair, chosen=(7,) * 9), ragged()[0]]
    alone = response_logps(policy, policy.collate([pair]))
    between = response_logps(policy, policy.collate([others[0], pair, others[2]]))
    torch.testing.assert_close(alone.rejected[0], between.rejected[1])
    other_chosen = response_logps(policy, policy.collate([others[1]]))
    torch.testing.assert_close(alone.rejected, other_chosen.rejected)
    assert not torch.allclose(alone.chosen, other_chosen.chosen)


def made(config) -> torch.nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}


@pytest.mark.parametrize(
    "config",
    [
        BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2),
        MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4),
        FAMILIES["gemma2, logits capped"],
        MistralConfig(**SMALL, sliding_window=32),
    ],
    ids=["bloom", "mamba", "gemma2", "mistral, window of 32 tokens"],
)
def test_a_model_that_cannot_pack_is_told_and_left_as_it_was(config):
    model = made(config)
    before = model.config._attn_implementation, model(torch.tensor([[3, 4, 5]])).logits
    assert start_packing(model, 64)
    assert model.config._attn_implementation == before[0]
    assert torch.equal(model(torch.tensor([[3, 4, 5]])).logits, before[1])


def test_a_window_longer_than_any_sequence_does_not_matter():
    model = made(MistralConfig(**SMALL, sliding_window=64))
    assert start_packing(model, 64) is None


@pytest.mark.parametrize(
    "config",
    [
        PhimoeConfig(**SMALL, num_local_experts=2, sliding_window=16),
        Llama4TextConfig(**SMALL, num_local_experts=1, attention_chunk_size=16, head_dim=8, pad_token_id=None),
    ],
    ids=["phimoe", "llama4"],
)
def test_a_window_that_only_the_mask_knows_of_is_read_from_the_configuration(config):
    assert "is shorter than max_length=64" in start_packing(made(config), 64)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_of_shorter_weights_is_tried_in_float32_and_gets_them_back(dtype):
    model = made(FAMILIES["llama, tied"]).to(dtype)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert start_packing(model, 64) is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_gptj_with_its_own_attention_still_gives_right_numbers():
    model = made(GPTJConfig(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, rotary_dim=4))
    policy = Policy(model, None, torch.device("cpu"))
    layout = PADDED if start_packing(model, 64) else Layout()
    with torch.no_grad():
        found = response_logps(replace(policy, layout=layout), replace(policy, layout=layout).collate(ragged()))
    if layout is not PADDED:
        model.set_attn_implementation("sdpa")
    chosen, _ = plain_logps(copy.deepcopy(model).double(), ragged())
    torch.testing.assert_close(found.chosen.double(), chosen.detach(), rtol=1e-5, atol=1e-5)


def test_activation_checkpointing_recomputes_the_packed_attention():
    policy = replace(packing_policy("qwen2"), layout=Layout())
    model = copy.deepcopy(policy.model)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    check(replace(policy, model=model), with_columns(ragged()))
