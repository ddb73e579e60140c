"""The options of adapters: their formulas, exact ties before training, and a run that begins with an adapter."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fed.config.groups import LoraSettings, ModelSettings
from fed.model.demo import demo_model, demo_tokenizer
from fed.model.loading import load_policy
from fed.model.lora import adapter_off, add_adapter, base_state
from fed.model.placement import Placement
from fed.model.policy import save_policy
from support.adapters import load
from support.command_line import SMALL, CommandLine

IDS = torch.arange(24).reshape(2, 12)
ADAPTED = ("lora.r=4", "lr=0.01", "warmup_steps=0")


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_rslora_scales_by_the_root_of_the_rank() -> None:
    """alpha = 8, r = 4: 8 / 4 = 2, and 8 / sqrt(4) = 4."""
    for settings, scale in ((LoraSettings(r=4, alpha=8), 2.0), (LoraSettings(r=4, alpha=8, use_rslora=True), 4.0)):
        model = load(r=0).model
        add_adapter(model, settings, None)
        layer = model.model.layers[0].self_attn.q_proj
        assert layer.scaling["default"] == scale == 8 / (math.sqrt(4) if settings.use_rslora else 4)


def test_gaussian_draws_have_the_standard_deviation_of_one_over_the_rank() -> None:
    model = load(r=0).model
    add_adapter(model, LoraSettings(r=8, init_lora_weights="gaussian"), None)
    drawn = torch.cat([p.flatten() for name, p in model.named_parameters() if "lora_A" in name])
    assert abs(drawn.std().item() - 1 / 8) < 0.01
    assert all(not p.any() for name, p in model.named_parameters() if "lora_B" in name)


def test_dora_ties_exactly_before_training_and_off() -> None:
    plain = load(r=0).model
    expected, state = logits(plain), {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    add_adapter(plain, LoraSettings(r=4, use_dora=True), None)
    assert torch.equal(logits(plain), expected)
    trained = {name for name, parameter in plain.named_parameters() if parameter.requires_grad}
    assert any("lora_magnitude_vector" in name for name in trained)
    base = base_state(plain)
    assert base.keys() == state.keys() and all(torch.equal(base[name], state[name]) for name in base)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.add_(0.1 if name in trained else 0)
    assert not torch.allclose(logits(plain), expected)
    with adapter_off(plain):
        assert torch.equal(logits(plain), expected)


@pytest.mark.parametrize("option", ["lora.use_dora=true", "lora.use_rslora=true", "lora.init_lora_weights=gaussian"])
def test_a_run_trains_each_kind_of_adapter_and_others_differ(command_line: CommandLine, option: str) -> None:
    found, plain = (command_line(*SMALL, *ADAPTED, *more) for more in ([option], []))
    assert found.code == plain.code == 0, found.err
    assert found.lines()[0]["loss"] == plain.lines()[0]["loss"] and found.lines()[-1] != plain.lines()[-1]
    weights = load_file(found.run / "policy" / "adapter_model.safetensors")
    assert any("magnitude" in name for name in weights) == ("dora" in option)
    assert AutoModelForCausalLM.from_pretrained(found.run / "policy") is not None


def test_dora_is_refused_where_weights_are_split(command_line: CommandLine) -> None:
    result = command_line(*SMALL, *ADAPTED, "lora.use_dora=true", "trainer=FSDPTrainer")
    assert result.code == 2 and "lora.use_dora=true trains the lengths of whole weights" in result.err


def test_options_of_an_adapter_have_no_effect_without_one(command_line: CommandLine) -> None:
    for option in ("lora.use_dora=true", "lora.use_rslora=true", "lora.init_lora_weights=gaussian"):
        result = command_line(*SMALL, option)
        assert result.code == 2 and f"{option.partition('=')[0]} has no effect with lora.r=0" in result.err


def saved_demo(folder: Path) -> Path:
    torch.manual_seed(1)
    tokens = demo_tokenizer()
    demo_model(tokens).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


@pytest.fixture
def with_adapter(tmp_path: Path) -> tuple[Path, Path, torch.Tensor]:
    """Return a model's folder, that of an adapter of it that was changed, and the logits of both together."""
    base = saved_demo(tmp_path / "base")
    policy = load_policy(ModelSettings(name_or_path=str(base)), Placement(torch.device("cpu")), lora=LoraSettings(r=4))
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    save_policy(policy, tmp_path / "adapter")
    return base, tmp_path / "adapter", logits(policy.model)


def test_a_run_begins_with_an_adapter_as_policy_and_reference(with_adapter, command_line: CommandLine) -> None:
    base, adapter, expected = with_adapter
    merged = load_policy(ModelSettings(name_or_path=str(base), adapter=str(adapter)), Placement(torch.device("cpu")))
    torch.testing.assert_close(logits(merged.model), expected, rtol=1e-4, atol=1e-4)
    assert all(parameter.requires_grad for parameter in merged.model.parameters())
    model = ["model=blank_model", f"model.name_or_path={base}", f"model.adapter={adapter}", "max_length=64"]
    sizes = ["max_prompt_length=32", "batch_size=8", "gradient_accumulation_steps=1"]
    for more in ([], ["lora.r=2"]):
        result = command_line(*SMALL, *model, *sizes, *more)
        assert result.code == 0, result.err
        assert "all 2 pairs tied" in result.out, "policy and reference are the same before training"
        trained = AutoModelForCausalLM.from_pretrained(result.run / "policy")
        assert 0 < (logits(trained) - expected).abs().max() < 1


def test_adapters_that_cannot_be_merged_are_one_line(with_adapter, tmp_path: Path) -> None:
    base, adapter, _ = with_adapter

    def told(folder: Path) -> str:
        with pytest.raises(ValueError, match=r"cannot merge model\.adapter=") as found:
            load_policy(ModelSettings(name_or_path=str(base), adapter=str(folder)), Placement(torch.device("cpu")))
        assert "\n" not in str(found.value)
        return str(found.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    assert "it has no adapter_model.safetensors" in told(empty)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file({name: tensor[:1] for name, tensor in weights.items()}, adapter / "adapter_model.safetensors")
    assert "size mismatch" in told(adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"x")
    told(adapter)
    (adapter / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM"}')
    assert "expected LORA" in told(adapter)
