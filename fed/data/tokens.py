"""Rows as token ids (`Example`), truncated to what the model reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fed.data.rows import Preference

# One object per token id, shared by all texts: 8 bytes a token in place of 36.
_IDS: dict[int, int] = {}


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    eos_token_id: int

    def __call__(self, text: list[str], **kwargs: object) -> dict[str, list[list[int]]]:
        """Return token ids under the key "input_ids"."""


class PairLogps(NamedTuple):
    """Summed log-probabilities of one pair, a constant column of the data."""

    chosen: float
    rejected: float


@dataclass(frozen=True, slots=True)
class Example:
    """One pair as token ids, with the columns computed for it; both responses end in end-of-text."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    reference: PairLogps | None = None  # log-probs under the frozen reference model
    anchor: PairLogps | None = None  # log-probs under the global model this round started from

    @property
    def length(self) -> int:
        """The number of tokens of the longer sequence."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def tokenize(
    rows: Sequence[Preference], tokenizer: Tokenizer, *, max_length: int, max_prompt_length: int
) -> list[Example]:
    """Turn rows into token ids, truncated as the original DPO code does, except that end-of-text is kept.

    No special token is added or recognised in the text. When prompt plus longer response exceed `max_length`, the
    prompt is cut to `max_prompt_length` at the end its row names; if that is not enough, responses are cut to
    `max_length - max_prompt_length` tokens, the last of which stays end-of-text.

    Raises:
        ValueError: If a prompt has no token, or the lengths leave no room for a response.
    """
    if not 1 <= max_prompt_length < max_length:
        raise ValueError(
            f"max_prompt_length={max_prompt_length} must be at least 1 and below max_length={max_length}: the "
            "rest is for the response"
        )

    def ids(texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        found = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [shared_ids(tokens) for tokens in found]

    end = tokenizer.eos_token_id
    prompts = ids([row.prompt for row in rows])
    for row, prompt in zip(rows, prompts, strict=True):
        if not prompt:
            raise ValueError(
                f"the prompt {row.prompt!r} has no tokens in this tokenizer, so nothing predicts its responses' first "
                f"token (chosen: {row.chosen[:40]!r}); drop the row or give it a prompt"
            )
    columns = zip(rows, prompts, ids([row.chosen for row in rows]), ids([row.rejected for row in rows]), strict=True)
    return [
        truncate(prompt, [*chosen, end], [*rejected, end], row.truncation, max_length, max_prompt_length)
        for row, prompt, chosen, rejected in columns
    ]


def shared_ids(tokens: Iterable[int]) -> list[int]:
    """Return the same ids as objects that all examples share."""
    return [_IDS.setdefault(token, token) for token in tokens]


def truncate(
    prompt: list[int], chosen: list[int], rejected: list[int], keep: str, max_length: int, max_prompt_length: int
) -> Example:
    """Cut a pair to `max_length` tokens a side; the last token of both responses must be end-of-text, and stays."""
    longest = max(len(chosen), len(rejected))
    if len(prompt) + longest > max_length:
        prompt = prompt[-max_prompt_length:] if keep == "keep_end" else prompt[:max_prompt_length]
    if len(prompt) + longest > max_length:
        limit = max_length - max_prompt_length
        chosen, rejected = (ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in (chosen, rejected))
    return Example(tuple(prompt), tuple(chosen), tuple(rejected))
