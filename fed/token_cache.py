"""Token ids in `cache_dir`: a SuperNode's process lives for one message, and finds those of the last one there."""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers

from fed.array_cache import read_array, write_array
from fed.batches import Example, Preference, shared_ids, tokenize
from fed.endings import writing

FORMAT = 1  # raised when `tokenize` makes other tokens of the same rows


def tokenize_once(
    rows: Sequence[Preference], tokenizer: Any, *, max_length: int, max_prompt_length: int, cache: Path
) -> list[Example]:
    """As `tokenize`, but read from `cache` where the same rows were tokenized before in the same way.

    Only the owner of the process can read the files. An entry that cannot be read is made anew. Tokenizers with code of
    their own are run each time: it may change without a word.

    Raises:
        ValueError: As `tokenize`.
        CannotWrite: If the disk refuses the cache's file.
    """
    name = _content_hash(rows, tokenizer, max_length, max_prompt_length)
    entry = None if name is None or not rows else cache / f"tokens-{name}.npy"
    if entry is not None and (found := _examples(read_array(entry), len(rows), len(tokenizer))) is not None:
        return found
    examples = tokenize(rows, tokenizer, max_length=max_length, max_prompt_length=max_prompt_length)
    if entry is not None:
        parts = [part for example in examples for part in (example.prompt, example.chosen, example.rejected)]
        ids = [token for part in parts for token in part]
        with writing(entry):
            cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # tokens are the owner's texts
        write_array(entry, np.asarray([*map(len, parts), *ids], dtype=np.int32))
    return examples


def _content_hash(rows: Sequence[Preference], tokenizer: Any, max_length: int, max_prompt_length: int) -> str | None:
    """Of everything that decides the tokens; None where not all of it can be seen."""
    if not hasattr(tokenizer, "backend_tokenizer") or not type(tokenizer).__module__.startswith("transformers."):
        return None
    versions = FORMAT, tokenizers.__version__, transformers.__version__
    settings = type(tokenizer).__name__, tokenizer.eos_token_id, max_length, max_prompt_length
    digest = hashlib.sha256(repr((versions, settings)).encode())
    texts = (text for row in rows for text in (row.prompt, row.chosen, row.rejected, row.truncation))
    for text in (tokenizer.backend_tokenizer.to_str(), *texts):
        content = text.encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:32]


def _examples(values: np.ndarray | None, count: int, num_tokens: int) -> list[Example] | None:
    """The examples of an entry; None if it is none, or damaged."""
    if values is None or values.ndim != 1 or values.dtype != np.int32 or len(values) < 3 * count:
        return None
    lengths, ids = values[: 3 * count], values[3 * count :]
    if (lengths < 1).any() or lengths.sum(dtype=np.int64) != len(ids) or ((ids < 0) | (ids >= num_tokens)).any():
        return None
    tokens, ends = shared_ids(ids.tolist()), np.cumsum(lengths).tolist()
    parts = [tuple(tokens[start:end]) for start, end in itertools.pairwise([0, *ends])]
    return [Example(*sides) for sides in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]
