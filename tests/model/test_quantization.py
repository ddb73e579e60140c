"""Packed weights: what a layer computes, that it ties, trains and is saved, and what it takes of memory."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from fed.config.groups import LoraSettings, ModelSettings
from fed.data.collate import PADDED, Layout
from fed.data.examples import Example
from fed.model.adapter_config import adaptable_layers
from fed.model.arrays import model_tensors
from fed.model.demo import demo_model, demo_tokenizer
from fed.model.loading import load_policy
from fed.model.lora import adapter_off, base_state
from fed.model.placement import Placement
from fed.model.policy import Policy, pair_logps, save_policy
from fed.model.quantization import PackedLinear, packed_layers, quantize, unpacked_state, weight_count
from support.command_line import SMALL, CommandLine
from support.good_inputs import save_gpt2

KINDS = ("nf4", "int8")
IDS = torch.arange(24).reshape(2, 12)
CPU = Placement(torch.device("cpu"))
# The levels of nf4 (arXiv 2305.14314, appendix E).
LEVELS = torch.tensor(
    (
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
        *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
        *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    )
)
PLAIN = LoraSettings(r=4)


def pack(layer: nn.Linear, kind: str) -> PackedLinear:
    model = nn.Sequential(layer)
    quantize(model, ["0"], kind)
    return model[0]


def policy_of(kind: str | None, lora: LoraSettings = PLAIN, layout: Layout = PADDED, **more: str) -> Policy:
    torch.manual_seed(1)
    return load_policy(ModelSettings(quantization=kind, **more), CPU, lora=lora, layout=layout)


def move(policy: Policy) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))


def test_nf4_takes_the_nearest_level_of_each_block() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 3)
    blocks = layer.weight.detach().reshape(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    nearest = LEVELS[((blocks / scales)[..., None] - LEVELS).abs().argmin(-1)] * scales
    torch.testing.assert_close(pack(layer, "nf4").weight, nearest.reshape(3, 128))


def test_int8_rounds_each_row() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(128, 3)
    scales = layer.weight.detach().abs().amax(1, keepdim=True)
    assert ((pack(layer, "int8").weight - layer.weight).abs() <= 0.5001 * scales / 127).all()


@pytest.mark.parametrize("kind", KINDS)
def test_both_passes_multiply_by_the_unpacked_weights(kind: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(130, 5)
    packed = pack(layer, kind)
    inputs = torch.randn(2, 7, 130, requires_grad=True)
    plain = nn.functional.linear(inputs, packed.weight, layer.bias)
    torch.testing.assert_close(packed(inputs), plain)
    weights = torch.randn(2, 7, 5)
    (expected,) = torch.autograd.grad((plain * weights).sum(), inputs)
    (found,) = torch.autograd.grad((packed(inputs) * weights).sum(), inputs)
    torch.testing.assert_close(found, expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert packed(inputs).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4.5), ("int8", 8.125)])
def test_a_packed_layer_takes_as_many_bits_a_weight_as_promised(kind: str, bits: float) -> None:
    """nf4: 4 bits and 32 for each block of 64. int8: 8 bits and 32 for each row of 256."""
    layer = pack(nn.Linear(256, 64, bias=False), kind)
    assert sum(t.nbytes for t in layer.state_dict().values()) * 8 == bits * 256 * 64
    assert not list(layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_gpt2_is_unpacked_as_it_was_stored(kind: str) -> None:
    torch.manual_seed(1)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=257, n_embd=64, n_layer=1, n_head=2, n_positions=32)).eval()
    before, logits = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model(IDS).logits
    quantize(model, list(adaptable_layers(model)), kind)
    assert len(list(packed_layers(model))) == 4 and not any(isinstance(m, Conv1D) for m in model.modules())
    state = unpacked_state(model, model.state_dict())
    assert {name: t.shape for name, t in state.items()} == {name: t.shape for name, t in before.items()}
    assert 0 < (model(IDS).logits - logits).abs().max() < 0.1
    plain = GPT2LMHeadModel(model.config).eval()
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_is_trained_and_the_reference_is_the_packed_base(kind: str) -> None:
    policy = policy_of(kind)
    expected = policy.model(IDS).logits.detach()
    assert expected.ne(policy_of(None).model(IDS).logits).any()
    assert all(".lora_" in name for name in model_tensors(policy.model))
    assert weight_count(policy.model) == policy_of(None).model.num_parameters()
    before = {name: tensor.clone() for name, tensor in base_state(policy.model).items()}
    move(policy)
    assert not torch.allclose(policy.model(IDS).logits, expected)
    with adapter_off(policy.model):
        assert torch.equal(policy.model(IDS).logits, expected)
    after = base_state(policy.model)
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_give_the_log_probs_of_padded_ones(kind: str) -> None:
    pairs = [Example((5, 3, 9), (7, 2, 6, 4), (8, 1)), Example((2, 6), (4,), (9, 7, 1, 8)), Example((1,), (6,), (3,))]
    found = []
    for layout in (PADDED, Layout(packing=True, prefix_sharing=True, fused_head=True)):
        policy = policy_of(kind, layout=layout)
        assert policy.layout == layout, policy.remarks
        move(policy)
        found.append(torch.tensor([tuple(p) for p in pair_logps(policy, pairs, batch_size=3)]))
        alone = [tuple(pair_logps(policy, [pair], batch_size=1)[0]) for pair in pairs]
        torch.testing.assert_close(found[-1], torch.tensor(alone), rtol=1e-5, atol=1e-5)  # whatever stands beside it
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lora", [PLAIN, LoraSettings(r=4, use_dora=True)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_computes_what_was_trained(kind: str, lora: LoraSettings, tmp_path: Path) -> None:
    """The demo has no directory to refer to, so its base is written as it computes, unpacked."""
    policy = policy_of(kind, lora)
    move(policy)
    save_policy(policy, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(IDS).logits, policy.model(IDS).logits, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_a_directory_refers_to_its_unpacked_weights(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokens = demo_tokenizer()
    demo_model(tokens).save_pretrained(tmp_path / "base")
    tokens.save_pretrained(tmp_path / "base")
    policy = policy_of("nf4", name_or_path=str(tmp_path / "base"))
    save_policy(policy, tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "base").exists()
    loaded, base = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("adapter", "base"))
    assert torch.equal(loaded(IDS).logits, base(IDS).logits)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tokens = demo_tokenizer()
    model = demo_model(tokens)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] = torch.inf
    model.save_pretrained(tmp_path)
    tokens.save_pretrained(tmp_path)
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"not finite, in model\.layers\.0\.mlp\.up_proj"):
            policy_of(kind, name_or_path=str(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_an_adapter_beside_packed_weights(command_line: CommandLine, kind: str) -> None:
    result = command_line(*SMALL, "lora.r=4", "lr=0.01", "warmup_steps=0", f"model.quantization={kind}")
    assert result.code == 0, result.err
    assert "all 2 pairs tied" in result.out, "policy and reference are the same before training"
    assert result.lines()[0]["loss"] != result.lines()[-1]["loss"]
    assert AutoModelForCausalLM.from_pretrained(result.run / "policy") is not None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ([], "model.quantization=nf4 freezes the weights, so an adapter must be trained; give lora.r=8"),
        (["lora.r=4", "trainer=FSDPTrainer"], "model.quantization=nf4 works with trainer=BasicTrainer only"),
        (["lora.r=4", "lora.modules_to_save=[q_proj]"], "q_proj would train packed weights"),
    ],
)
def test_packing_without_an_adapter_or_in_pieces_is_refused(
    command_line: CommandLine, options: list[str], reason: str
) -> None:
    result = command_line(*SMALL, "model.quantization=nf4", *options)
    assert result.code == 2 and reason in result.err


def test_without_bitsandbytes_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match=r"needs bitsandbytes: pip install -c constraints\.txt -e '\.\[quant\]'"):
        policy_of("nf4")
    assert policy_of("int8") is not None


def test_int8_packs_rows_of_zeros_and_weights_beyond_float16() -> None:
    layer = nn.Linear(4, 2, bias=False)
    layer.weight.data = torch.tensor([[0.0] * 4, [70000.0, -35000.0, 0.0, 1.0]])
    torch.testing.assert_close(pack(layer, "int8").weight, layer.weight.data, rtol=0, atol=70000 / 127 / 2)


def test_a_packed_gpt2_is_saved_for_the_layers_that_its_base_has(tmp_path: Path) -> None:
    save_gpt2(tmp_path / "base")
    policy = policy_of("nf4", name_or_path=str(tmp_path / "base"))
    save_policy(policy, tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["fan_in_fan_out"] is True
    base, loaded = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("base", "adapter"))
    assert torch.equal(loaded(IDS).logits, base(IDS).logits)
