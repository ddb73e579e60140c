"""The pairs that each optimizer step of a client's rounds takes, and its share of the learning rate."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from clients.settings import LocalSettings, RoundSettings
from clients.state import ClientState
from fed.data.collate import Layout, num_tokens
from fed.data.examples import Example
from fed.data.order import BatchOrder


class Schedule:
    """The optimizer steps of every client's rounds."""

    def __init__(self, settings: LocalSettings, layout: Layout) -> None:
        self._settings = settings
        self._layout = layout

    def num_pairs(self, examples: Sequence[Example], client_id: int, rounds: int = 1) -> list[int]:
        """Return how many pairs a client with these examples trains on in its first, second, ... round."""
        order, first, found = self._order(examples, client_id), 0, []
        for _ in range(rounds):
            steps = self._steps(order, first)
            found.append(sum(map(len, steps)))
            first += len(steps) if self._settings.reshuffle else 0
        return found

    def steps(
        self, examples: Sequence[Example], client_id: int, state: ClientState, this_round: RoundSettings
    ) -> list[np.ndarray]:
        """Return the indices of the examples that each optimizer step of the client's next round takes."""
        order, reshuffles = self._order(examples, client_id), self._settings.reshuffle
        if this_round.pairs is None:
            return self._steps(order, state.batches if reshuffles else 0)
        return order.stretch(state.examples if reshuffles else 0, this_round.pairs)

    def _steps(self, order: BatchOrder, first: int) -> list[np.ndarray]:
        """Return the steps of a round that begins with batch `first`."""
        if self._settings.local_steps is not None:
            return order.batches(first, self._settings.local_steps)
        return order.epochs(first, self._settings.local_epochs)

    def _order(self, examples: Sequence[Example], client_id: int) -> BatchOrder:
        settings, layout = self._settings, self._layout
        order = BatchOrder(len(examples), settings.batch_size, settings.seed, client_id)
        if settings.max_tokens_per_step is None:
            return order
        tokens = num_tokens(examples, layout, paired=not settings.supervised).tolist()
        return replace(order, tokens=tokens, max_tokens=settings.max_tokens_per_step, padded=not layout.packing)


def warmed_up(settings: LocalSettings, steps: int, number: int, updates: int) -> float:
    """Return the share of the learning rate that a client's step has.

    Args:
        settings: Of the client's training.
        steps: Steps of the round.
        number: Place of this one in the round, from 0.
        updates: Steps that the client took before, in all rounds.
    """
    rising = settings.warmup_steps if settings.warmup_ratio is None else round(settings.warmup_ratio * steps)
    restarts = settings.warmup_restarts and settings.client_optimizer == "reset"
    return min(1.0, ((number if restarts else updates) + 1) / (rising + 1))
