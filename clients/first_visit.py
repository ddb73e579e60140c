"""Pairs of clients that a run may never meet: their reference columns are computed at the first visit."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord

from clients.app import ClientPairs
from fed.data.tokens import Example
from fed.model.arrays import load_arrays


@dataclass(frozen=True)
class Columns:
    """How reference columns are computed."""

    model: Any  # which the initial weights are loaded into: it may have been trained since
    initial: ArrayRecord
    fill: Callable[[Sequence[Example]], list[Example]]
    supervised: bool  # the loss needs none of training pairs
    scoring: Sequence[Example] | None  # what every client's result is scored on; None: its own held-out pairs
    phase: Callable[[], AbstractContextManager[None]] = nullcontext  # around the computation

    def filled(self, own: ClientPairs) -> ClientPairs:
        """A client's pairs with their columns."""
        with self.phase():
            load_arrays(self.model, self.initial)
            held_out = self.fill(own.held_out)
            train = own.train if self.supervised else self.fill(own.train)
        return ClientPairs(train, held_out, held_out if self.scoring is None else self.scoring)


class FirstVisits(dict[int, ClientPairs]):
    """Each client's pairs with their columns, which depend on that client alone, whoever was met before."""

    def __init__(self, clients: Sequence[ClientPairs], columns: Columns) -> None:
        self._clients, self._columns = clients, columns

    def __missing__(self, client_id: int) -> ClientPairs:
        self[client_id] = pairs = self._columns.filled(self._clients[client_id])
        return pairs
