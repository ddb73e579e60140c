"""The order in which a client's pairs are trained on, and the batches they make."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fed.seeding import generator


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
    tokens: Sequence[int] = ()  # the number of tokens of each example
    max_tokens: int | None = None
    padded: bool = False  # every example of a batch counts as many tokens as the largest

    def batches(self, first: int, count: int) -> list[np.ndarray]:
        """Return the example indices of batches `first` to `first + count - 1`, counted over epochs."""
        return list(itertools.islice(self._from(first), count))

    def epochs(self, first: int, count: int) -> list[np.ndarray]:
        """Return batches from `first` to the end of the `count`-th epoch; the first of these epochs holds `first`."""
        number, before = self._epoch_at(first)
        return [batch for epoch in range(number, number + count) for batch in self.epoch(epoch)][first - before :]

    def stretch(self, first: int, count: int) -> list[np.ndarray]:
        """Return batches of examples `first` to `first + count - 1` of the endless order; none spans two epochs."""
        batches = []
        while count > 0:
            number, start = divmod(first, self.num_examples)
            part = self._permutation(number)[start : start + count]
            batches += self._cut(part)
            first, count = first + len(part), count - len(part)
        return batches

    def epoch(self, number: int) -> list[np.ndarray]:
        """Return the example indices of each batch of one epoch."""
        return self._cut(self._permutation(number))

    def _from(self, first: int) -> Iterator[np.ndarray]:
        number, before = self._epoch_at(first)
        yield from self.epoch(number)[first - before :]
        for later in itertools.count(number + 1):
            yield from self.epoch(later)

    def _epoch_at(self, position: int) -> tuple[int, int]:
        """Find the epoch that holds a position, and the position of its first batch."""
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

    def _permutation(self, number: int) -> np.ndarray:
        return generator(self.seed, "batches", self.client_id, number).permutation(self.num_examples)

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        """Cut an order into batches."""
        cuts = range(self.batch_size, len(order), self.batch_size) if self.max_tokens is None else self._cuts(order)
        return np.split(order, list(cuts))

    def _cuts(self, order: np.ndarray) -> Iterator[int]:
        """Yield the places at which the next example would exceed `max_tokens`."""
        assert self.max_tokens is not None
        start = held = largest = 0
        for place, index in enumerate(order):
            largest = max(largest, self.tokens[index])
            held = (place - start + 1) * largest if self.padded else held + self.tokens[index]
            if held > self.max_tokens and place > start:
                yield place
                start, held = place, self.tokens[index]
                largest = held


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Group indices in batches of like length, which saves padding.

    The longest come first, so that running out of memory shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
