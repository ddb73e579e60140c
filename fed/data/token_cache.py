"""Token ids kept in `cache_dir`: a run finds those of an earlier one, a SuperNode's process its predecessor's."""

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers

from fed.data.chat import ChatSettings
from fed.data.examples import Examples
from fed.data.rows import Preference
from fed.data.tokens import Cuts, Lengths, Tokenized, tokenize
from fed.files import read_array, write_array

FORMAT = 2  # raised when `tokenize` makes other tokens of the same rows


def tokenize_once(
    rows: Sequence[Preference],
    tokenizer: Any,
    *,
    lengths: Lengths,
    chat: ChatSettings,
    cache: Path,
    on_rows: Callable[[int], None] = lambda done: None,
) -> Tokenized:
    """Tokenize rows, or read their tokens from `cache` if the same rows were tokenized before in the same way.

    Only the owner of the process can read the files. An entry that cannot be read is written anew. Tokenizers with code
    of their own are run each time: that code may change unnoticed.

    Raises:
        ValueError: As `tokenize` does.
        CannotWrite: If the disk refuses the cache's file.
    """
    rules = _rules(tokenizer) if rows else None
    if rules is None:
        return tokenize(rows, tokenizer, lengths=lengths, chat=chat, on_rows=on_rows)
    entry = cache / f"tokens-{_content_hash(rows, rules, lengths, chat)}.npy"
    found = _unpacked(read_array(entry), len(rows), len(tokenizer))
    if found is None:
        found = tokenize(rows, tokenizer, lengths=lengths, chat=chat, on_rows=on_rows)
        write_array(entry, _packed(found))
    return found


@functools.lru_cache(1)  # a process seldom has more than one tokenizer, and asks for each client
def _rules(tokenizer: Any) -> str | None:
    """Hash all that decides the tokens of a text; None if not all of it can be seen."""
    if not hasattr(tokenizer, "backend_tokenizer") or not type(tokenizer).__module__.startswith("transformers."):
        return None
    own = tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.chat_template
    rules = type(tokenizer).__name__, own, tokenizer.backend_tokenizer.to_str()
    return hashlib.sha256(repr(rules).encode("utf-8", "surrogatepass")).hexdigest()


def _content_hash(rows: Sequence[Preference], rules: str, lengths: Lengths, chat: ChatSettings) -> str:
    settings = FORMAT, tokenizers.__version__, transformers.__version__, rules, lengths, chat
    digest = hashlib.sha256(repr(settings).encode())
    for row in rows:
        content = repr((row.prompt, row.chosen, row.rejected, row.truncation)).encode("utf-8", "surrogatepass")
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()[:32]


def _packed(found: Tokenized) -> np.ndarray:
    """Return the pairs and the counts as bytes: the length of the head, the head in JSON, and three arrays."""
    examples, cuts = found.examples, found.cuts
    head = json.dumps([str(examples.ids.dtype), len(examples), vars(cuts)]).encode()
    arrays = (found.kept.astype(np.uint8), examples.lengths.astype(np.int32), examples.ids)
    content = len(head).to_bytes(8, "little") + head + b"".join(array.tobytes() for array in arrays)
    return np.frombuffer(content, dtype=np.uint8)


def _unpacked(values: np.ndarray | None, rows: int, num_tokens: int) -> Tokenized | None:
    """Return what `_packed` was given; None if an entry is missing or damaged."""
    if values is None:
        return None
    try:
        content = values.tobytes()
        start = 8 + int.from_bytes(content[:8], "little")
        dtype, count, cuts = json.loads(content[8:start])
        kept = np.frombuffer(content, np.uint8, rows, start).astype(bool)
        lengths = np.frombuffer(content, np.int32, 3 * count, start + rows)
        ids = np.frombuffer(content, dtype, -1, start + rows + lengths.nbytes)
    except (ValueError, TypeError):
        return None
    by_side = lengths.reshape(-1, 3)
    if kept.sum() != count or (by_side < [1, 1, 0]).any() or lengths.sum(dtype=np.int64) != len(ids):
        return None
    if ids.dtype not in (np.uint16, np.uint32) or (ids >= num_tokens).any():
        return None
    counts = Cuts(cuts["pairs"], cuts["tokens"], Counter(cuts["dropped"]), Counter(cuts["remarks"]))
    return Tokenized(Examples(ids, np.cumsum(lengths, dtype=np.int64)), kept, counts)
