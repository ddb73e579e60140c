"""Texts that are published as token ids of GPT-2, as the best-of-four labels of arXiv 1909.08593 are."""

import functools
from typing import Any

from fed.data.records import Record
from fed.data.source import Reading

PAD = 50259  # the id that fills queries and samples up to one length
GPT2 = 50257  # tokens of its vocabulary


def text_of_ids(record: Record, name: str, reading: Reading) -> str:
    """Return a field that is text, or the text of GPT-2's token ids.

    Raises:
        ValueError: If it is neither, or the run's tokenizer, which is asked for the text, is another than GPT-2's.
    """
    value = record.value(name)
    if isinstance(value, str):
        return record.text(name)
    if not isinstance(value, list) or not all(isinstance(item, int) and 0 <= item <= PAD for item in value):
        raise record.wrong(name, "text, or a list of GPT-2's token ids")
    text: str = _gpt2(reading.tokenizer).decode([item for item in value if item != PAD], skip_special_tokens=True)
    return text


@functools.lru_cache(1)
def _gpt2(name: str | None) -> Any:
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(name or "openai-community/gpt2")
    except Exception as error:  # whatever a damaged or missing folder makes the reader raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the labels are token ids of GPT-2, whose tokenizer cannot be loaded ({reason})") from error
    if found.vocab_size != GPT2:
        raise ValueError(
            f"the labels are token ids of GPT-2, but the tokenizer of {name} has {found.vocab_size} tokens; use "
            "model=gpt2, or labels as text"
        )
    return found
