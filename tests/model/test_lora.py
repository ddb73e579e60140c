"""LoRA: the trained weights, the weights that travel, the reference and the files that are written."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Olmo2Config, Olmo2ForCausalLM

from fed.config.groups import LoraSettings
from fed.model.arrays import model_tensors, snapshot
from fed.model.demo import demo_model, demo_tokenizer
from fed.model.lora import adapter_off, add_adapter, base_state, save_model
from fed.model.policy import save_policy
from support.adapters import load, logps, move, reference, reloaded

IDS = torch.arange(24).reshape(2, 12)
SIZES = dict(vocab_size=257, num_hidden_layers=2, num_attention_heads=2)


def gpt2() -> GPT2LMHeadModel:
    """Make a GPT-2 of two layers, with tied embeddings and weights stored transposed."""
    torch.manual_seed(1)
    end = demo_tokenizer().eos_token_id
    sizes = dict(vocab_size=257, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=end, eos_token_id=end)
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


def llama() -> Any:
    torch.manual_seed(1)
    return demo_model(demo_tokenizer())


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Save the GPT-2 as an HF directory."""
    gpt2().save_pretrained(tmp_path / "gpt2")
    demo_tokenizer().save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


# What is trained and travels


def test_only_the_adapter_travels() -> None:
    """Hidden size is 64, keys and values 32: A is r x 64; B is 64 x r for queries, 32 x r for values; two layers."""
    model = load(r=4).model
    model.register_buffer("statistics", torch.ones(3))  # persistent and float: of a full model it would travel
    tensors = model_tensors(model)
    assert len(tensors) == 2 * 2 * 2
    assert all(".lora_A." in name or ".lora_B." in name for name in tensors)
    assert sum(tensor.numel() for tensor in tensors.values()) == 2 * 4 * ((64 + 64) + (64 + 32))
    sent, whole = (sum(a.numpy().nbytes for a in snapshot(part).values()) for part in (tensors, base_state(model)))
    assert sent == 7168 and sent < whole / 50


def test_without_lora_everything_travels_and_the_adapters_functions_change_nothing() -> None:
    model = load(r=0).model
    assert len(model_tensors(model)) == len(list(model.parameters()))
    before = model(IDS).logits
    with adapter_off(model):
        assert torch.equal(model(IDS).logits, before)
    assert base_state(model).keys() == model.state_dict().keys()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_model_keeps_its_class_body_head_and_names(make: Callable[[], Any]) -> None:
    model = make()
    before = (type(model), model.base_model, model.get_output_embeddings(), model.config)
    names, logits = list(model.state_dict()), model(IDS).logits
    add_adapter(model, LoraSettings(r=2), None)
    assert (type(model), model.base_model, model.get_output_embeddings(), model.config) == before
    assert list(base_state(model)) == names
    assert torch.equal(model(IDS).logits, logits)


def test_the_adapter_is_float32_over_frozen_bfloat16_weights() -> None:
    model = load(policy_dtype="bfloat16").model
    dtypes = {(parameter.dtype, parameter.requires_grad) for parameter in model.parameters()}
    assert dtypes == {(torch.bfloat16, False), (torch.float32, True)}
    model(IDS).logits.float().logsumexp(-1).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_the_adapter_is_a_function_of_torchs_seed() -> None:
    one, same = (model_tensors(load().model) for _ in range(2))
    assert all(torch.equal(tensor, same[name]) for name, tensor in one.items())
    torch.manual_seed(3)
    other = llama()
    add_adapter(other, LoraSettings(r=4), None)
    assert not any(torch.equal(t, one[name]) for name, t in model_tensors(other).items() if ".lora_A." in name)


@pytest.mark.parametrize(
    ("make", "wanted", "names"),
    [
        (llama, None, {"q_proj", "v_proj"}),
        (gpt2, None, {"c_attn"}),
        (
            lambda: Olmo2ForCausalLM(Olmo2Config(**SIZES, hidden_size=16, intermediate_size=24, pad_token_id=0)),
            None,  # peft has no choice for it: all but the head
            {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        ),
        (llama, ["down_proj", "self_attn.o_proj"], {"down_proj", "o_proj"}),
    ],
)
def test_the_chosen_layers_get_an_adapter(make: Callable[[], Any], wanted: list[str] | None, names: set[str]) -> None:
    model = make()
    add_adapter(model, LoraSettings(r=2, target_modules=wanted), None)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in model_tensors(model)} == names
    written = model.peft_config["default"].target_modules
    assert written == sorted(written)  # in the same order in every run


# The mathematics


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (3.0, 0.75)])
def test_gradients_are_those_of_the_model_with_w_plus_alpha_over_r_b_a(
    make: Callable[[], Any], alpha: float | None, scale: float, device: torch.device
) -> None:
    """Torch alone differentiates the plain model, whose weights are computed from A and B with r = 4, in float64."""
    plain, model = make().double(), make()
    add_adapter(model, LoraSettings(r=4, alpha=alpha), None)
    model.double().to(device)
    move(model)
    tensors = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _loss(model(IDS.to(device)).logits.cpu()).backward()

    by_hand = {name: p.detach().cpu().clone().requires_grad_() for name, p in tensors.items()}
    weights = {}
    for name in (name for name in by_hand if ".lora_A." in name):
        product = by_hand[name.replace("lora_A", "lora_B")] @ by_hand[name]
        layer = name.split(".lora_A.")[0] + ".weight"
        weights[layer] = plain.get_parameter(layer) + scale * (product.T if make is gpt2 else product)
    _loss(functional_call(plain, weights, (IDS,)).logits).backward()
    for name, parameter in tensors.items():
        assert parameter.grad.abs().max() > 1e-5
        torch.testing.assert_close(parameter.grad.cpu(), by_hand[name].grad, rtol=1e-9, atol=1e-12)


def _loss(logits: Tensor) -> Tensor:
    """Compute DPO's loss of the two rows, with beta 0.1 and without a reference."""
    chosen, rejected = logits.log_softmax(-1)[:, :-1].gather(2, IDS[:, 1:, None]).sum((1, 2))
    return -nn.functional.logsigmoid(0.1 * (chosen - rejected))


@pytest.mark.parametrize("lora", [{}, {"target_modules": ["q_proj", "gate_proj"]}])
def test_activation_checkpointing_gives_the_same_gradients(lora: dict[str, Any]) -> None:
    found = []
    for checkpointing in (False, True):
        model = load(checkpointing=checkpointing, lora=lora).model
        assert any(layer.training for layer in model.model.layers) == checkpointing
        move(model)
        _loss(model(IDS, use_cache=False).logits).backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(plain.abs().max() > 0 and torch.equal(plain, again) for plain, again in zip(*found, strict=True))


# The reference


@pytest.mark.parametrize(
    "model", [{}, {"policy_dtype": "bfloat16"}, {"fsdp_policy_mp": "bfloat16"}], ids=["float32", "bfloat16", "mixed"]
)
def test_the_untrained_policy_is_the_reference_bit_for_bit_and_a_trained_one_is_not(
    model: dict[str, Any], device: torch.device
) -> None:
    policy, plain = load(**model, device=device), load(r=0, **model, device=device)
    assert logps(policy) == reference(policy) == logps(plain)
    move(policy.model)
    assert reference(policy) == logps(plain)
    assert all(now != before for now, before in zip(logps(policy), logps(plain), strict=True))


def test_the_adapter_is_on_and_trainable_again_after_it_was_off() -> None:
    model = load().model
    move(model)
    before, names = model(IDS).logits, list(model_tensors(model))
    with pytest.raises(KeyError), adapter_off(model):
        assert not torch.equal(model(IDS).logits, before)
        raise KeyError
    assert torch.equal(model(IDS).logits, before)
    assert list(model_tensors(model)) == names


def test_the_reference_cache_is_shared_by_all_adapters_of_a_model(tmp_path: Path) -> None:
    policies = [load(r=0), load(r=4), load(r=8)]
    move(policies[2].model)
    columns = [reference(policy, tmp_path) for policy in policies]
    assert len(list(tmp_path.iterdir())) == 1
    assert columns[0] == columns[1] == columns[2]
    with torch.no_grad():
        policies[1].model.model.norm.weight.mul_(2)
    assert reference(policies[1], tmp_path) != columns[1]


# What is left on disk


def test_a_base_from_a_directory_is_named_not_copied(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    policy = load(name_or_path=directory.name)
    move(policy.model)
    save_policy(policy, tmp_path / "policy")
    written = {path.name for path in (tmp_path / "policy").iterdir()}
    assert written == {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    settings = json.loads((tmp_path / "policy/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(directory)
    monkeypatch.chdir("/")
    assert logps(reloaded(policy, tmp_path / "policy")) == logps(policy)


def test_a_base_that_an_archive_changed_is_written_once(directory: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    GPT2LMHeadModel(GPT2Config.from_pretrained(directory)).save_pretrained(tmp_path / "other")
    policy = load(name_or_path=str(directory), archive=str(tmp_path / "other"))
    base = tmp_path / "policy/client-0/base"
    for client in ("client-0", "client-1"):
        move(policy.model)
        save_policy(policy, tmp_path / "policy" / client)
        assert logps(reloaded(policy, tmp_path / "policy" / client)) == logps(policy)
    assert list(tmp_path.glob("policy/**/model.safetensors")) == [base / "model.safetensors"]
    same = AutoModelForCausalLM.from_pretrained(base).state_dict()
    assert all(torch.equal(tensor, same[name]) for name, tensor in base_state(policy.model).items())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's call of an older name
def test_peft_itself_loads_the_adapter_and_merges_it(tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    policy = load()
    move(policy.model)
    save_model(policy.model, tmp_path)
    merged = AutoPeftModelForCausalLM.from_pretrained(tmp_path).merge_and_unload()
    torch.testing.assert_close(merged(IDS).logits, policy.model(IDS).logits)


def test_an_adapter_is_no_model_to_start_from(directory: Path, tmp_path: Path) -> None:
    save_policy(load(name_or_path=str(directory)), tmp_path / "policy")
    adapter = str(tmp_path / "policy")
    for settings in ({"name_or_path": adapter}, {"name_or_path": str(directory), "archive": adapter}):
        told = f"not a whole model; give model.name_or_path={directory.resolve()} model.adapter={adapter}"
        with pytest.raises(ValueError, match=re.escape(told)):
            load(r=0, **settings)
