"""Each family of config/model/ as a tiny model: packed equals padded, adapter, template, save and load."""

from pathlib import Path

import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from fed.config.groups import LoraSettings, ModelSettings
from fed.data.collate import PADDED, Layout
from fed.data.rows import Chat, Preference, Turn
from fed.data.tokens import Lengths, tokenize
from fed.model.lora import adapter_off
from fed.model.placement import Placement
from fed.model.policy import pair_logps, save_policy
from support.templates import tokenizer

CONFIG = Path(__file__).parents[2] / "config" / "model"
PRESETS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in CONFIG.glob("*.yaml")
    if path.stem not in ("demo", "blank_model")
}
COMMON = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
GATED = {**COMMON, "intermediate_size": 24, "num_key_value_heads": 1}
# Of each block: the family's configuration, and the chat template of those that have one.
BLOCKS = {
    "LlamaDecoderLayer": (LlamaConfig, GATED, "SmolLM2"),
    "Qwen2DecoderLayer": (Qwen2Config, GATED, "ChatML"),
    "Qwen3DecoderLayer": (Qwen3Config, {**GATED, "head_dim": 8}, "Qwen 3"),
    "Gemma3DecoderLayer": (Gemma3TextConfig, {**GATED, "head_dim": 8, "sliding_window": 256}, "Gemma"),
    "MistralDecoderLayer": (MistralConfig, {**GATED, "sliding_window": None}, "Mistral"),
    "GPTNeoXLayer": (GPTNeoXConfig, {**COMMON, "intermediate_size": 24}, None),
    "GPT2Block": (GPT2Config, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}, None),
    "GPTJBlock": (GPTJConfig, {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256, "rotary_dim": 4}, None),
}
TALK = Chat((Turn("user", "Hi there"), Turn("assistant", "Hello!"), Turn("user", "Why?")))


def test_every_preset_names_its_model_and_a_block_that_is_tested() -> None:
    assert {preset["block_name"] for preset in PRESETS.values()} == set(BLOCKS)
    assert all(preset["name_or_path"] for preset in PRESETS.values())


def folder_of(block: str, tmp_path: Path) -> Path:
    """Write a tiny model of the family with a tokenizer of the family's template."""
    config, sizes, family = BLOCKS[block]
    tokens = tokenizer(family or "ChatML")
    torch.manual_seed(0)
    ends = {"vocab_size": len(tokens), "eos_token_id": tokens.eos_token_id, "bos_token_id": tokens.bos_token_id}
    model = AutoModelForCausalLM.from_config(config(**sizes, **ends, pad_token_id=None))
    assert any(type(module).__name__ == block for module in model.modules())
    model.save_pretrained(tmp_path / "model")
    tokens.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("block", BLOCKS)
def test_a_family_runs_packed_with_an_adapter_and_is_saved_and_loaded(block: str, tmp_path: Path) -> None:
    from fed.model.loading import load_policy

    folder = folder_of(block, tmp_path)
    settings, place = (
        ModelSettings(name_or_path=str(folder), block_name=block),
        Placement(torch.device("cpu")),
    )
    padded = load_policy(settings, place, layout=PADDED, max_length=200)
    rows = [Preference(TALK, Turn("assistant", text), Turn("assistant", "No.")) for text in ("Four, really.", "So")]
    pairs = tokenize(rows, padded.tokenizer, lengths=Lengths(200, 150)).examples
    plain = torch.tensor(pair_logps(padded, pairs, batch_size=2))
    packed = load_policy(settings, place, layout=Layout(), max_length=200, lora=LoraSettings(r=2))
    assert packed.layout.packing == (block != "GPTJBlock"), packed.remarks  # whose attention is its own
    torch.testing.assert_close(torch.tensor(pair_logps(packed, pairs, batch_size=2)), plain, rtol=1e-4, atol=1e-4)
    trained = [parameter for parameter in packed.model.parameters() if parameter.requires_grad]
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(0.2)
    changed = torch.tensor(pair_logps(packed, pairs, batch_size=2))
    assert (changed - plain).abs().min() > 1e-3
    with adapter_off(packed.model):
        torch.testing.assert_close(torch.tensor(pair_logps(packed, pairs, batch_size=2)), plain, rtol=1e-4, atol=1e-4)
    save_policy(packed, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    (first, *_) = pairs
    with torch.no_grad():
        logits = loaded(torch.tensor([first.prompt + first.chosen])).logits[0].log_softmax(-1)
    expected = sum(logits[len(first.prompt) + place - 1, token] for place, token in enumerate(first.chosen))
    torch.testing.assert_close(expected.double(), changed[0, 0].double(), rtol=1e-4, atol=1e-4)
