"""Rows to token ids (`Example`), and the order in which batches of them come."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from fed.seeding import generator

# One object for each token id, whatever texts it stands in: 8 bytes a token in place of 36.
_IDS: dict[int, int] = {}


class Preference(Protocol):
    """What tokenising reads of a row; `load_data.Preference` is one."""

    @property
    def prompt(self) -> str:
        """Text up to and including the last turn marker."""

    @property
    def chosen(self) -> str:
        """Preferred response."""

    @property
    def rejected(self) -> str:
        """Other response."""

    @property
    def truncation(self) -> str:
        """End of a too long prompt that survives: keep_end or keep_start."""


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    eos_token_id: int

    def __call__(self, text: list[str], **kwargs: object) -> dict[str, list[list[int]]]:
        """Token ids under the key "input_ids"."""


class PairLogps(NamedTuple):
    """Summed log-probs of one pair, a constant column of the data."""

    chosen: float
    rejected: float


@dataclass(frozen=True, slots=True)
class Example:
    """One pair as token ids, responses ending in end-of-text, with the columns that were computed for it."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    reference: PairLogps | None = None  # log-probs under the frozen reference model
    anchor: PairLogps | None = None  # log-probs under the global model this round started from

    @property
    def length(self) -> int:
        """Tokens of the longer sequence."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


def tokenize(
    rows: Sequence[Preference], tokenizer: Tokenizer, *, max_length: int, max_prompt_length: int
) -> list[Example]:
    """Token ids of each row, truncated as the original DPO code does, except that end-of-text is kept.

    No special token is added or recognised in the text. When prompt plus longer response exceed `max_length`, the
    prompt is cut to `max_prompt_length` at the end its row names; if that is not enough, responses are cut to
    `max_length - max_prompt_length` tokens, the last of which stays end-of-text.

    Raises:
        ValueError: If a prompt has no token, or the lengths leave no room for a response.
    """
    if not 1 <= max_prompt_length < max_length:
        raise ValueError(
            f"max_prompt_length={max_prompt_length} must be at least 1 and below max_length={max_length}: what it "
            "leaves is for the response"
        )

    def ids(texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        found = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [shared_ids(tokens) for tokens in found]

    end = tokenizer.eos_token_id
    prompts = ids([row.prompt for row in rows])
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        if not prompt:
            raise ValueError(
                f"row {number} has the prompt {row.prompt!r}, which is no token, so nothing predicts its responses' "
                f"first token (chosen: {row.chosen[:40]!r}); drop the row or give it a prompt"
            )
    columns = zip(rows, prompts, ids([row.chosen for row in rows]), ids([row.rejected for row in rows]), strict=True)
    return [
        truncate(prompt, [*chosen, end], [*rejected, end], row.truncation, max_length, max_prompt_length)
        for row, prompt, chosen, rejected in columns
    ]


def shared_ids(tokens: Iterable[int]) -> list[int]:
    """The same ids as objects that all examples share."""
    return [_IDS.setdefault(token, token) for token in tokens]


def truncate(
    prompt: list[int], chosen: list[int], rejected: list[int], keep: str, max_length: int, max_prompt_length: int
) -> Example:
    """The example within `max_length` tokens a side; responses come in with end-of-text as last token."""
    longest = max(len(chosen), len(rejected))
    if len(prompt) + longest > max_length:
        prompt = prompt[-max_prompt_length:] if keep == "keep_end" else prompt[:max_prompt_length]
    if len(prompt) + longest > max_length:
        limit = max_length - max_prompt_length
        chosen, rejected = (ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in (chosen, rejected))
    return Example(tuple(prompt), tuple(chosen), tuple(rejected))


@dataclass(frozen=True)
class BatchOrder:
    """An endless, seeded order of one client's batches; any position can be asked for at any time.

    Each epoch is a new permutation, cut into batches of `batch_size` examples, or, with `max_tokens`, of as many as
    stay within that many tokens (one example if it alone exceeds them); an epoch's last batch may be smaller.
    """

    num_examples: int
    batch_size: int
    seed: int
    client_id: int
    tokens: Sequence[int] = ()  # of each example
    max_tokens: int | None = None
    padded: bool = False  # every example of a batch counts as many tokens as the largest

    def epoch(self, number: int) -> list[np.ndarray]:
        """The example indices of each batch of one epoch."""
        return self._cut(self._permutation(number))

    def _permutation(self, number: int) -> np.ndarray:
        return generator(self.seed, "batches", self.client_id, number).permutation(self.num_examples)

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        cuts = range(self.batch_size, len(order), self.batch_size) if self.max_tokens is None else self._cuts(order)
        return np.split(order, list(cuts))

    def _cuts(self, order: np.ndarray) -> Iterator[int]:
        assert self.max_tokens is not None
        start = held = largest = 0
        for place, index in enumerate(order):
            largest = max(largest, self.tokens[index])
            held = (place - start + 1) * largest if self.padded else held + self.tokens[index]
            if held > self.max_tokens and place > start:
                yield place
                start, held = place, self.tokens[index]
                largest = held

    def batches(self, first: int, count: int) -> list[np.ndarray]:
        """Example indices of batches `first` to `first + count - 1`, counted over epochs."""
        return list(itertools.islice(self._from(first), count))

    def epochs(self, first: int, count: int) -> list[np.ndarray]:
        """Batches from `first` to the end of the `count`-th epoch, the one that holds `first` included."""
        number, before = self._epoch_at(first)
        return [batch for epoch in range(number, number + count) for batch in self.epoch(epoch)][first - before :]

    def stretch(self, first: int, count: int) -> list[np.ndarray]:
        """Batches of examples `first` to `first + count - 1` of the endless order; none reaches over an epoch's end."""
        batches = []
        while count > 0:
            number, start = divmod(first, self.num_examples)
            part = self._permutation(number)[start : start + count]
            batches += self._cut(part)
            first, count = first + len(part), count - len(part)
        return batches

    def _from(self, first: int) -> Iterator[np.ndarray]:
        number, before = self._epoch_at(first)
        yield from self.epoch(number)[first - before :]
        for later in itertools.count(number + 1):
            yield from self.epoch(later)

    def _epoch_at(self, position: int) -> tuple[int, int]:
        """The epoch that holds a position, and the position of its first batch."""
        if self.max_tokens is None:
            per_epoch = -(-self.num_examples // self.batch_size)
            return position // per_epoch, position // per_epoch * per_epoch
        before = 0
        for number in itertools.count():
            length = len(self.epoch(number))
            if position < before + length:
                return number, before
            before += length
        raise AssertionError


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length: little padding. Longest first, so that running out of memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
