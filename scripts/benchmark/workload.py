"""The input of every variant of the step: a model shape with random weights, and real pairs as token ids.

Nothing is downloaded: configurations stand here and the tokenizer is trained on the texts at hand.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from fed.data.examples import Example
from fed.data.rows import Preference
from fed.data.tokens import Lengths, tokenize
from fed.model.demo import END_OF_TEXT, demo_config
from fed.seeding import seed_globals
from load_data import load

MAX_LENGTH, MAX_PROMPT_LENGTH = 512, 256


@dataclass(frozen=True)
class Shape:
    """A model's architecture; `config` receives the trained tokenizer."""

    vocabulary: int
    config: Callable[[PreTrainedTokenizerFast], Any]


def _gpt2(tokenizer: PreTrainedTokenizerFast) -> GPT2Config:
    # Dropout is off, as everywhere in DPO: each variant would get another loss.
    return GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **_ends(tokenizer))


def _smollm2(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **_ends(tokenizer),
    )


def _llama_1b(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128256,
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        **_ends(tokenizer),
    )


def _ends(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}


SHAPES = {
    "tiny": Shape(512, demo_config),  # the demo's
    "gpt2": Shape(50257, _gpt2),  # 124M
    "smollm2": Shape(49152, _smollm2),  # 135M
    "llama1b": Shape(128256, _llama_1b),  # 1.24 billion: for a GPU
}


@dataclass(frozen=True)
class Workload:
    """Batches of pairs, the tokenizer that made them, and the source of the texts."""

    batches: list[list[Example]]
    tokenizer: PreTrainedTokenizerFast
    source: str


def workload(shape: Shape, data_dir: Path, *, batch: int, repeats: int) -> Workload:
    """Return `repeats` batches of the pairs in `data_dir`, or of the demo's dialogues if it does not exist.

    Raises:
        ValueError: If there are too few pairs, or the file holds something else.
    """
    source, rows = _rows(data_dir)
    tokenizer = train_tokenizer(rows, shape.vocabulary)
    needed = batch * repeats
    if needed > len(rows):
        raise ValueError(f"batch={batch} repeats={repeats} needs {needed} pairs; {source} has {len(rows)}")
    pairs = tokenize(rows[:needed], tokenizer, lengths=Lengths(MAX_LENGTH, MAX_PROMPT_LENGTH)).examples
    return Workload([pairs[i : i + batch] for i in range(0, needed, batch)], tokenizer, source)


def _rows(data_dir: Path) -> tuple[str, list[Preference]]:
    if data_dir.exists():
        rows = load(["hh"], "test", data_dir=str(data_dir), seed=0, test_fraction=0.2).rows
        return f"hh pairs of {data_dir.name}", rows
    return f"the demo's dialogues ({data_dir} is absent)", load(["demo"], "train", data_dir=None, seed=0).rows


def train_tokenizer(rows: Sequence[Preference], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of at most `vocabulary` tokens, end-of-text among them, on the rows' texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_texts(rows), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def _texts(rows: Sequence[Preference]) -> Iterator[str]:
    for row in rows:
        yield from map(str, (row.prompt, row.chosen, row.rejected))


def random_model(
    shape: Shape, tokenizer: PreTrainedTokenizerFast, name: str, device: torch.device | str = "cpu"
) -> Any:
    """Return the shape in float32 with random weights, which depend on the name and are drawn on the device."""
    seed_globals(0, name)
    config = shape.config(tokenizer)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    return model.to(device).eval()


def token_means(batches: Sequence[Sequence[Example]]) -> dict[str, float]:
    """Return the mean tokens of a pair's prompt, chosen and rejected response."""
    pairs = [pair for batch in batches for pair in batch]
    parts = {name: sum(len(getattr(pair, name)) for pair in pairs) for name in ("prompt", "chosen", "rejected")}
    return {name: tokens / len(pairs) for name, tokens in parts.items()}
