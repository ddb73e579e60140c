"""Token ids kept in `cache_dir`: a SuperNode's process lives for one message and finds its predecessor's there."""

import functools
import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers

from fed.data.rows import Preference
from fed.data.tokens import Example, shared_ids, tokenize
from fed.files import read_array, write_array

FORMAT = 1  # raised when `tokenize` makes other tokens of the same rows


def tokenize_once(
    rows: Sequence[Preference], tokenizer: Any, *, max_length: int, max_prompt_length: int, cache: Path
) -> list[Example]:
    """Tokenize rows, or read their tokens from `cache` if the same rows were tokenized before in the same way.

    Only the owner of the process can read the files. An entry that cannot be read is written anew. Tokenizers with code
    of their own are run each time: that code may change unnoticed.

    Raises:
        ValueError: As `tokenize` does.
        CannotWrite: If the disk refuses the cache's file.
    """
    limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    rules = _rules(tokenizer) if rows else None
    if rules is None:
        return tokenize(rows, tokenizer, **limits)
    entry = cache / f"tokens-{_content_hash(rows, rules, *limits.values())}.npy"
    examples = _examples(read_array(entry), len(rows), len(tokenizer))
    if examples is None:
        examples = tokenize(rows, tokenizer, **limits)
        parts = [part for example in examples for part in (example.prompt, example.chosen, example.rejected)]
        numbers = itertools.chain(map(len, parts), itertools.chain.from_iterable(parts))
        write_array(entry, np.fromiter(numbers, dtype=np.int32))
    return examples


@functools.lru_cache(1)  # a process seldom has more than one tokenizer, and asks for each client
def _rules(tokenizer: Any) -> str | None:
    """Hash all that decides the tokens of a text; None if not all of it can be seen."""
    if not hasattr(tokenizer, "backend_tokenizer") or not type(tokenizer).__module__.startswith("transformers."):
        return None
    rules = type(tokenizer).__name__, tokenizer.eos_token_id, tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(repr(rules).encode("utf-8", "surrogatepass")).hexdigest()


def _content_hash(rows: Sequence[Preference], rules: str, max_length: int, max_prompt_length: int) -> str:
    settings = FORMAT, tokenizers.__version__, transformers.__version__, rules, max_length, max_prompt_length
    digest = hashlib.sha256(repr(settings).encode())
    for text in (text for row in rows for text in (row.prompt, row.chosen, row.rejected, row.truncation)):
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:32]


def _examples(values: np.ndarray | None, count: int, num_tokens: int) -> list[Example] | None:
    """Return the examples of an entry; None if it is missing or damaged."""
    if values is None or values.ndim != 1 or values.dtype != np.int32 or len(values) < 3 * count:
        return None
    lengths, ids = values[: 3 * count], values[3 * count :]
    if (lengths < 1).any() or lengths.sum(dtype=np.int64) != len(ids) or ((ids < 0) | (ids >= num_tokens)).any():
        return None
    tokens, ends = shared_ids(ids.tolist()), np.cumsum(lengths).tolist()
    parts = [tuple(tokens[start:end]) for start, end in itertools.pairwise([0, *ends])]
    return [Example(*sides) for sides in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]
