"""The options of adapters: their formulas, exact ties before training, and a run that begins with an adapter."""

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from fed.config.groups import LoraSettings, ModelSettings
from fed.model.arrays import model_tensors
from fed.model.demo import demo_model, demo_tokenizer
from fed.model.loading import load_policy
from fed.model.lora import adapter_off, add_adapter, base_state
from fed.model.placement import Placement
from fed.model.policy import save_policy
from fed.model.randomness import AdapterDropout
from support.adapters import load
from support.command_line import SMALL, CommandLine

IDS = torch.arange(24).reshape(2, 12)
ADAPTED = ("lora.r=4", "lr=0.01", "warmup_steps=0")
CPU = Placement(torch.device("cpu"))


def saved(make, folder: Path) -> Path:
    torch.manual_seed(1)
    tokens = demo_tokenizer()
    make(tokens).save_pretrained(folder)
    tokens.save_pretrained(folder)
    return folder


def change(model: torch.nn.Module) -> None:
    """Move all that is trained, as training would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))


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


# What is trained beside the adapter


def small_gpt2(tokens) -> GPT2LMHeadModel:
    sizes = dict(vocab_size=257, n_embd=32, n_layer=1, n_head=2, n_positions=64, eos_token_id=tokens.eos_token_id)
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))


BESIDE = [
    (small_gpt2, LoraSettings(r=4, bias="all"), 7),
    (small_gpt2, LoraSettings(r=4, bias="lora_only"), 1),
    (small_gpt2, LoraSettings(r=4, modules_to_save=["wte", "ln_f"]), 3),
    (small_gpt2, LoraSettings(r=4, modules_to_save=["lm_head"]), 1),  # tied with wte in the base
    (demo_model, LoraSettings(r=4, modules_to_save=["embed_tokens"]), 1),
    (small_gpt2, LoraSettings(r=4, bias="all", modules_to_save=["ln_f"]), 8),
    (demo_model, LoraSettings(r=4, use_dora=True), 0),
]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Model has `tie_word:UserWarning")  # of peft's own loader
@pytest.mark.parametrize(("make", "lora", "count"), BESIDE)
def test_what_is_trained_beside_the_adapter_is_off_in_the_reference_and_saved(make, lora, count, tmp_path) -> None:
    base = saved(make, tmp_path / "base")
    policy = load_policy(ModelSettings(name_or_path=str(base)), CPU, lora=lora)
    expected = logits(AutoModelForCausalLM.from_pretrained(base))
    before = {name: tensor.clone() for name, tensor in base_state(policy.model).items()}
    assert torch.equal(logits(policy.model), expected)
    assert sum(".lora_" not in name for name in model_tensors(policy.model)) == count
    change(policy.model)
    trained = logits(policy.model)
    assert not torch.allclose(trained, expected)
    with adapter_off(policy.model):
        assert torch.equal(logits(policy.model), expected)
    assert torch.equal(logits(policy.model), trained)
    after = base_state(policy.model)
    assert before.keys() == after.keys() and all(torch.equal(after[name], before[name]) for name in before)
    save_policy(policy, tmp_path / "adapter")
    plain = AutoModelForCausalLM.from_pretrained(base)
    for loaded in (
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        PeftModel.from_pretrained(plain, tmp_path / "adapter"),
    ):
        torch.testing.assert_close(logits(loaded), trained)
    merged = load_policy(ModelSettings(name_or_path=str(base), adapter=str(tmp_path / "adapter")), CPU)
    save_policy(merged, tmp_path / "merged")
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(found, trained, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["lora.bias=all"], "lora.bias=all finds no bias to train in LlamaForCausalLM"),
        (["lora.modules_to_save=[lm_heads]"], "lora.modules_to_save=lm_heads names no module with weights"),
        (["lora.modules_to_save=[lm_head]", "model.policy_dtype=bfloat16"], "use model.policy_dtype=float32"),
        (["lora.modules_to_save=[lm_head]", "trainer=FSDPTrainer"], "works with trainer=BasicTrainer only"),
        (["lora.modules_to_save=[layers]"], "lora.modules_to_save=[layers] leaves no layer for the adapter"),
        (["lora.dropout=1"], "lora.dropout=1"),
    ],
)
def test_what_cannot_be_trained_beside_the_adapter_is_refused(
    command_line: CommandLine, options: list[str], reason: str
) -> None:
    result = command_line(*SMALL, *ADAPTED, *options)
    assert result.code == 2 and reason in result.err


# Dropout


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_is_on_inside_a_step_only_and_its_draws_are_a_function_of_the_step(dora: bool) -> None:
    model = load(r=0).model
    add_adapter(model, LoraSettings(r=4, dropout=0.5, use_dora=dora), None)
    change(model)
    model.eval()
    expected, dropout = logits(model), AdapterDropout(model)

    def drawn(*numbers: int, model=model, dropout=dropout) -> torch.Tensor:
        with dropout.on(0, *numbers):
            return logits(model)

    one = drawn(1, 2)
    assert not torch.allclose(one, expected) and torch.equal(logits(model), expected)
    assert torch.equal(drawn(1, 2), one) and not torch.equal(drawn(1, 3), one)
    layer, inputs = model.model.layers[0].self_attn.q_proj, torch.randn(5, 64)
    expected, spread = layer(inputs), []
    for step in range(2000):
        with dropout.on(0, step):
            spread.append(layer(inputs).detach())
    error = (torch.stack(spread).mean(0) - expected).abs() / torch.stack(spread).std(0)
    assert error.mean() < 2 / math.sqrt(2000), "dropout keeps the mean"


def test_without_dropout_nothing_is_drawn_or_changed() -> None:
    model = load(r=4).model
    dropout, state = AdapterDropout(model), torch.get_rng_state()
    assert not dropout
    with dropout.on(0, 1):
        assert not any(module.training for module in model.modules())
        assert torch.equal(torch.get_rng_state(), state)


def test_dropout_changes_what_is_trained_and_recomputed_activations_draw_it_again(command_line: CommandLine) -> None:
    plain, one, recomputed = (
        command_line(*SMALL, *ADAPTED, "alpha=1", *more)
        for more in ([], ["lora.dropout=0.3"], ["lora.dropout=0.3", "activation_checkpointing=true"])
    )
    assert one.lines()[0]["loss"] == plain.lines()[0]["loss"] and one.lines()[-1] != plain.lines()[-1]
    weights, same = (load_file(r.run / "policy" / "adapter_model.safetensors") for r in (one, recomputed))
    assert all(torch.equal(tensor, same[name]) for name, tensor in weights.items())
    lines = one.lines("client-0", "train")
    assert lines and all(line["anchor"] > 0 for line in lines), "the weights received have no dropout"


def test_dora_is_refused_where_weights_are_split(command_line: CommandLine) -> None:
    result = command_line(*SMALL, *ADAPTED, "lora.use_dora=true", "trainer=FSDPTrainer")
    assert result.code == 2 and "lora.use_dora=true works with trainer=BasicTrainer only" in result.err


def test_options_of_an_adapter_have_no_effect_without_one(command_line: CommandLine) -> None:
    for option in ("lora.use_dora=true", "lora.use_rslora=true", "lora.init_lora_weights=gaussian"):
        result = command_line(*SMALL, option)
        assert result.code == 2 and f"{option.partition('=')[0]} has no effect with lora.r=0" in result.err


@pytest.fixture
def with_adapter(tmp_path: Path) -> tuple[Path, Path, torch.Tensor]:
    """Return a model's folder, that of an adapter of it that was changed, and the logits of both together."""
    base = saved(demo_model, tmp_path / "base")
    policy = load_policy(ModelSettings(name_or_path=str(base)), CPU, lora=LoraSettings(r=4))
    change(policy.model)
    save_policy(policy, tmp_path / "adapter")
    return base, tmp_path / "adapter", logits(policy.model)


def test_a_run_begins_with_an_adapter_as_policy_and_reference(with_adapter, command_line: CommandLine) -> None:
    base, adapter, expected = with_adapter
    merged = load_policy(ModelSettings(name_or_path=str(base), adapter=str(adapter)), CPU)
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
        with pytest.raises(ValueError, match="cannot use the adapter ") as found:
            load_policy(ModelSettings(name_or_path=str(base), adapter=str(folder)), CPU)
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
