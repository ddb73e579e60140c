"""Pairs of clients that a run may never meet: their reference columns are computed at the first visit."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord

from clients.app import ClientPairs
from fed.arrays import load_arrays
from fed.batches import Example


@dataclass(frozen=True)
class Columns:
    """How reference columns are computed."""

    model: Any  # which the initial weights are loaded into: it may have been trained since
    initial: ArrayRecord
    fill: Callable[[Sequence[Example]], list[Example]]
    supervised: bool  # the loss needs none of training pairs
    scoring: Sequence[Example] | None  # what every client's result is scored on; None: its own held-out pairs
    phase: Callable[[], AbstractContextManager[None]]  # around the computation


class FirstVisits(dict[int, ClientPairs]):
    """Each client's pairs with their columns, which depend on that client alone, whoever was met before."""

    def __init__(self, clients: Sequence[ClientPairs], columns: Columns) -> None:
        self._clients, self._columns = clients, columns

    def __missing__(self, client_id: int) -> ClientPairs:
        own, columns = self._clients[client_id], self._columns
        with columns.phase():
            load_arrays(columns.model, columns.initial)
            held_out = columns.fill(own.held_out)
            train = own.train if columns.supervised else columns.fill(own.train)
        scoring = held_out if columns.scoring is None else columns.scoring
        self[client_id] = pairs = ClientPairs(train, held_out, scoring)
        return pairs
