"""`GroupGrid`: clients trained by several groups of processes at once, each process with its part of every array."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fed.distributed.ranks import Ranks
from fed.errors import Stopped
from fed.grids.local import DEFAULT_SETTINGS, LocalGrid
from fed.grids.settings import LocalGridSettings
from fed.model.arrays import RemoteArrays, to_record, to_tensors

SMALL = {"config": ConfigRecord, "metrics": MetricRecord}


class GroupGrid(LocalGrid):
    """A grid whose clients are shared out to groups of processes; all processes run the same strategy beside it.

    A client that keeps arrays between rounds stays with the group that holds them; the others go where least is to do.

    Args:
        app: The app that every client runs.
        contexts: One context per client; after each round all groups have the same contexts, but for arrays.
        settings: The settings of the grid. If the strategy streams, each group hands it the replies of its own clients
            as they come, and `RemoteArrays` in place of the others' arrays. Otherwise every process gets all replies.
        groups: This process and those at its place in the other groups.
        work: The expected cost of each client's round, in any unit.
        exchange: Called in all groups when all clients of a round are done.
    """

    def __init__(
        self,
        app: ClientApp,
        contexts: Sequence[Context],
        settings: LocalGridSettings = DEFAULT_SETTINGS,
        *,
        groups: Ranks,
        work: Sequence[float],
        exchange: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(app, contexts, settings)
        self._groups, self._work, self._exchange = groups, work, exchange
        self._holders: dict[int, int] = {}  # the group that holds a client's arrays

    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """Run this group's clients; the replies of all."""
        nodes = [message.metadata.dst_node_id for message in messages]
        owners = share_out(nodes, self._work, self._holders, self._groups.count)
        mine: dict[int, Message | None] = {}
        outlines: dict[int, Any] = {}
        stopped = 0
        for place, message in enumerate(messages):
            if owners[place] == self._groups.index:
                try:
                    reply = self.deliver(message)
                except Stopped as error:  # the other groups will too, when their present clients let them
                    stopped = error.number
                    break
                told = reply.error.reason if reply.has_error() else outline(reply.content)
                outlines[place] = told, outline(self.contexts[nodes[place]].state)
                mine[place] = None
                if self.settings.streams:
                    yield reply
                else:
                    mine[place] = reply
                del reply  # or it would stay alive while the next client trains
        if stopped := self._groups.largest(stopped):
            raise Stopped(stopped)
        every = {place: told for found in self._groups.gather(outlines) for place, told in found.items()}
        self._exchange()
        for place, message in enumerate(messages):
            content, state = every[place]
            self._remember(nodes[place], owners[place], state)
            if isinstance(content, str):  # the client failed
                if not self.settings.streams or place not in mine:
                    yield self.numbered(Message(Error(0, content), reply_to=message))
            elif self.settings.streams:
                if place not in mine:
                    sent = next(iter(message.content.array_records.values()), ArrayRecord())
                    elsewhere = functools.partial(_elsewhere, sent)
                    yield self.numbered(Message(filled(content, elsewhere), reply_to=message))
            else:
                own = mine.pop(place, None)
                yield self.numbered(Message(self._sent_round(owners[place], content, own), reply_to=message))

    def state_dict(self) -> dict[str, Any]:
        """Which group holds each client's arrays."""
        return {"holders": self._holders}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self._holders = dict(state["holders"])

    def _remember(self, node: int, owner: int, told: Mapping[str, Any]) -> None:
        """Keep what a client left in its context, but for arrays, which the group that trained it has."""
        state = self.contexts[node].state
        if owner != self._groups.index:
            for key, record in filled(told, lambda _: ArrayRecord()).items():
                state[key] = record
        if any(kind == "arrays" and content for kind, content in told.values()):
            self._holders[node] = owner

    def _sent_round(self, owner: int, told: Mapping[str, Any], own: Message | None) -> RecordDict:
        """The content of a reply in all groups, from the one that has it."""

        def arrays(key: str) -> ArrayRecord:
            sent = {} if own is None else to_tensors(own.content.array_records[key])
            groups = self._groups
            return to_record({name: groups.tensor_from(owner, sent.get(name), *how) for name, *how in told[key][1]})

        return filled(told, arrays)


def share_out(nodes: Sequence[int], work: Sequence[float], holders: Mapping[int, int], groups: int) -> list[int]:
    """The group of each node: its holder, or the one with the least work so far, the longest work first."""
    loads, owner = [0.0] * groups, {}
    for node in sorted(nodes, key=lambda node: (node not in holders, -work[node], node)):
        owner[node] = holders.get(node, loads.index(min(loads)))
        loads[owner[node]] += work[node]
    return [owner[node] for node in nodes]


def _elsewhere(like: ArrayRecord, key: str) -> ArrayRecord:
    return RemoteArrays(like)


def outline(content: RecordDict) -> dict[str, Any]:
    """What there is, small records with their values, arrays without."""
    found: dict[str, Any] = {}
    for key, record in content.items():
        if isinstance(record, ArrayRecord):
            found[key] = "arrays", shapes(record)
        else:
            found[key] = "config" if isinstance(record, ConfigRecord) else "metrics", dict(record)
    return found


def shapes(record: ArrayRecord) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Name, shape and dtype of each array."""
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in to_tensors(record).items()]


def filled(told: Mapping[str, Any], arrays: Callable[[str], ArrayRecord]) -> RecordDict:
    """The content that was told of by `outline`, its arrays made by `arrays` from their key."""
    return RecordDict(
        {key: arrays(key) if kind == "arrays" else SMALL[kind](content) for key, (kind, content) in told.items()}
    )
