"""`LeaderGrid`: strategies that need whole arrays, where every process holds a part of each.

The first process runs the strategy; the others follow its orders. Clients' mods see whole arrays too, and so every
process has those of the client it is training.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable, Mod

from fed.distributed.ranks import Ranks
from fed.distributed.shards import Shards
from fed.grids.local import LocalGrid
from fed.grids.outline import ArrayOutline, Outline, filled, outline, outline_arrays
from fed.grids.settings import LocalGridSettings
from fed.model.arrays import same_arrays, to_record, to_tensors

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


@dataclass(frozen=True)
class MessageOutline:
    """A message to one client, without its arrays."""

    node: int
    message_type: str
    group_id: str
    content: Outline
    records: Mapping[str, int]  # for each key of the content's arrays, which of the order's records it is


@dataclass(frozen=True)
class Deliver:
    """The order to run the clients that messages go to."""

    messages: Sequence[MessageOutline]
    records: Sequence[list[ArrayOutline]]  # the records of arrays in the messages, each once


@dataclass(frozen=True)
class EvaluateRound:
    """The order to take part in the evaluation after a round."""

    server_round: int
    arrays: list[ArrayOutline]


@dataclass(frozen=True)
class Finish:
    """The order to take this process's parts of the result and return."""

    arrays: list[ArrayOutline]


Order = Deliver | EvaluateRound | Finish


def in_parts(parts: Shards) -> Mod:
    """Return a Flower mod, the innermost: mods around it see whole arrays, the client its process's parts."""

    def split(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        for key, record in list(message.content.array_records.items()):
            message.content[key] = to_record({name: parts.of(name, t) for name, t in to_tensors(record).items()})
        reply = call_next(message, context)
        for key, record in list(reply.content.array_records.items()):
            reply.content[key] = to_record(parts.whole(to_tensors(record), keep=True))
        return reply

    return split


class LeaderGrid(LocalGrid):
    """The first process's grid: what the strategy sends reaches the clients in all processes.

    Args:
        grid: The grid that trains clients, in every process; its app has the mod `in_parts`.
        world: All processes.
        parts: The way in which the model is split.
    """

    def __init__(self, grid: LocalGrid, world: Ranks, parts: Shards) -> None:
        own = LocalGridSettings(streams=grid.settings.streams, wire=grid.settings.wire)
        super().__init__(grid.app, grid.contexts, own)
        self._grid, self._world, self._parts = grid, world, parts

    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """Send the messages to the other processes, run their clients and yield the replies."""
        records: list[ArrayRecord] = []
        outlines = []
        for message in messages:
            keys = {}
            for key, record in message.content.array_records.items():
                keys[key] = next((i for i, other in enumerate(records) if same_arrays(record, other)), len(records))
                if keys[key] == len(records):
                    records.append(record)
            meta = message.metadata
            content = outline(message.content)
            outlines.append(MessageOutline(meta.dst_node_id, meta.message_type, meta.group_id, content, keys))
        self._order(Deliver(outlines, [outline_arrays(record) for record in records]))
        for record in records:
            _received(self._world, record, outline_arrays(record))
        yield from self._grid.replies(messages)

    def evaluate(self, evaluate: Evaluate, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Call `evaluate` in all processes and return what it returns in this one."""
        outlines = outline_arrays(arrays)
        self._order(EvaluateRound(server_round, outlines))
        return evaluate(server_round, _received(self._world, arrays, outlines, self._parts))

    def finish(self, arrays: ArrayRecord) -> ArrayRecord:
        """End the run in all processes and return this process's parts of its result."""
        outlines = outline_arrays(arrays)
        self._order(Finish(outlines))
        return _received(self._world, arrays, outlines, self._parts)

    def _order(self, order: Order) -> None:
        self._world.from_first(order)


def follow(grid: LocalGrid, world: Ranks, parts: Shards, evaluate: Evaluate) -> ArrayRecord:
    """Follow the orders of the first process's grid until it finishes, and return the parts of the result.

    All processes but the first one call it.
    """
    nothing: Order = Finish([])  # what this process gives is ignored
    while True:
        order = world.from_first(nothing)
        if isinstance(order, Deliver):
            _answer(grid, world, order)
            continue
        arrays = _received(world, None, order.arrays, parts)
        if isinstance(order, Finish):
            return arrays
        evaluate(order.server_round, arrays)


def _answer(grid: LocalGrid, world: Ranks, order: Deliver) -> None:
    """Run the clients that the messages of an order go to; the first process has the same replies."""
    sent = [_received(world, None, of_record) for of_record in order.records]
    messages = []
    for message in order.messages:
        own = {key: sent[index] for key, index in message.records.items()}
        content = filled(message.content, own.__getitem__)
        messages.append(Message(content, message.node, message.message_type, group_id=message.group_id))
    for reply in grid.replies(messages):
        del reply


def _received(
    world: Ranks, record: ArrayRecord | None, outlines: Sequence[ArrayOutline], parts: Shards | None = None
) -> ArrayRecord:
    """Return, in every process, the arrays that the first one has in `record`, or this process's parts of them."""
    tensors, found = {} if record is None else to_tensors(record), {}
    for name, shape, dtype in outlines:
        whole = world.tensor_from(0, tensors.get(name), shape, dtype)
        found[name] = whole if parts is None else parts.of(name, whole)
    return to_record(found)
