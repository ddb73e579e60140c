"""Pairs as token ids: one of them (`Example`), and many in a few arrays (`Examples`)."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, overload

import numpy as np


class PairLogps(NamedTuple):
    """Summed log-probabilities of one pair, a constant column of the data."""

    chosen: float
    rejected: float


@dataclass(frozen=True, slots=True)
class Example:
    """One pair as token ids, with the columns computed for it; both responses end in the token that ends a turn.

    `rejected` is empty if there is none to avoid.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    reference: PairLogps | None = None  # log-probs under the frozen reference model
    anchor: PairLogps | None = None  # log-probs under the global model this round started from

    @property
    def length(self) -> int:
        """The number of tokens of the longer sequence."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


class Examples(Sequence[Example]):
    """Many pairs in a few arrays: 2 or 4 bytes a token and no Python object, where an `Example` has 8 and more.

    Attributes:
        ids: Token ids of prompt, chosen, rejected, prompt, ... end to end, shape (tokens,).
        ends: Where each of these ends, shape (3 x pairs,).
        reference: Log-probs under the reference, shape (pairs, 2); None: not computed.
    """

    def __init__(self, ids: np.ndarray, ends: np.ndarray, reference: np.ndarray | None = None) -> None:
        self.ids, self.ends, self.reference = ids, ends, reference

    @classmethod
    def of(cls, examples: Iterable[Example]) -> "Examples":
        """Return the same pairs in arrays, without their anchor column."""
        if isinstance(examples, Examples):
            return examples
        found = list(examples)
        parts = [part for one in found for part in (one.prompt, one.chosen, one.rejected)]
        ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        ids = np.fromiter(itertools.chain.from_iterable(parts), dtype=np.uint32, count=int(ends[-1]) if parts else 0)
        known = [one.reference for one in found if one.reference is not None]
        reference = np.array(known, dtype=np.float64) if found and len(known) == len(found) else None
        return cls(compact(ids), ends, reference)

    @classmethod
    def joined(cls, several: Iterable["Examples"]) -> "Examples":
        """Return the pairs of all, one after the other."""
        lists = [each for each in several if len(each)]
        if not lists:
            return cls.of([])
        starts = itertools.accumulate((len(each.ids) for each in lists), initial=0)
        ends = [each.ends + start for each, start in zip(lists, starts, strict=False)]
        columns = [each.reference for each in lists if each.reference is not None]
        reference = np.concatenate(columns) if len(columns) == len(lists) else None
        return cls(np.concatenate([each.ids for each in lists]), np.concatenate(ends), reference)

    def with_reference(self, reference: np.ndarray) -> "Examples":
        """Return the same pairs with the reference column, shape (pairs, 2)."""
        return Examples(self.ids, self.ends, reference)

    def part(self, start: int, stop: int) -> "Examples":
        """Return the pairs `start` to `stop - 1`, which share the memory of these."""
        first, last = (int(self.ends[3 * place - 1]) if place else 0 for place in (start, stop))
        reference = None if self.reference is None else self.reference[start:stop]
        return Examples(self.ids[first:last], self.ends[3 * start : 3 * stop] - first, reference)

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each prompt, chosen and rejected, shape (pairs, 3)."""
        return np.diff(self.ends, prepend=0).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self.ends) // 3

    @overload
    def __getitem__(self, place: int) -> Example: ...

    @overload
    def __getitem__(self, place: slice) -> list[Example]: ...

    def __getitem__(self, place: int | slice) -> Example | list[Example]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not -len(self) <= place < len(self):
            raise IndexError(place)
        first = 3 * (place % len(self))
        cuts = [int(self.ends[first - 1]) if first else 0, *self.ends[first : first + 3].tolist()]
        parts = [tuple(self.ids[start:end].tolist()) for start, end in itertools.pairwise(cuts)]
        found = Example(parts[0], parts[1], parts[2])
        if self.reference is None:
            return found
        return replace(found, reference=PairLogps(*self.reference[first // 3].tolist()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def compact(ids: np.ndarray) -> np.ndarray:
    """Return the ids as numbers of two bytes if they are that small, else of four."""
    return ids.astype(np.uint16 if not len(ids) or ids.max() < 2**16 else np.uint32, copy=False)


def lengths_of(examples: Sequence[Example]) -> np.ndarray:
    """Return the number of tokens of each prompt, chosen and rejected, shape (pairs, 3)."""
    if isinstance(examples, Examples):
        return examples.lengths
    found = [(len(one.prompt), len(one.chosen), len(one.rejected)) for one in examples]
    return np.array(found, dtype=np.int64).reshape(-1, 3)


def sequence_lengths(examples: Sequence[Example]) -> np.ndarray:
    """Return the number of tokens of the longer sequence of each pair, shape (pairs,)."""
    prompt, chosen, rejected = lengths_of(examples).T
    longer: np.ndarray = prompt + np.maximum(chosen, rejected)
    return longer


def longest_of(examples: Sequence[Example]) -> int:
    """Return the number of tokens of the longest sequence; 0 if there is none."""
    return int(sequence_lengths(examples).max(initial=0))


def are_pairs(examples: Sequence[Example]) -> bool:
    """Return True if every example has a response to avoid."""
    return bool(lengths_of(examples)[:, 2].all())
