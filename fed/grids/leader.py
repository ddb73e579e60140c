"""Strategies that need whole arrays, where every process holds a part of each.

The first process runs the strategy; the others do what it tells them. Clients' mods see whole arrays too, and so every
process has those of the client it is training.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp.typing import ClientAppCallable, Mod

from fed.distributed.ranks import Ranks
from fed.distributed.shards import Shards
from fed.grids.groups import filled, outline, shapes
from fed.grids.local import LocalGrid
from fed.grids.settings import LocalGridSettings
from fed.model.arrays import to_record, to_tensors

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


def in_parts(parts: Shards) -> Mod:
    """A Flower mod, the innermost: those around it see whole arrays, the client its process's parts."""

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
        grid: What trains clients, in every process; its app has the mod `in_parts`.
        world: All processes.
        parts: How the model is split.
    """

    def __init__(self, grid: LocalGrid, world: Ranks, parts: Shards) -> None:
        own = LocalGridSettings(streams=grid.settings.streams, wire=grid.settings.wire)
        super().__init__(grid.app, grid.contexts, own)
        self._grid, self._world, self._parts = grid, world, parts

    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """What the clients answer."""
        records: list[ArrayRecord] = []
        orders = []
        for message in messages:
            keys = {}
            for key, record in message.content.array_records.items():
                keys[key] = next((i for i, other in enumerate(records) if _is_same(record, other)), len(records))
                if keys[key] == len(records):
                    records.append(record)
            meta = message.metadata
            orders.append((meta.dst_node_id, meta.message_type, meta.group_id, outline(message.content), keys))
        self._world.from_first(("messages", orders, list(map(shapes, records))))
        for record in records:
            _received(self._world, record, shapes(record))
        yield from self._grid.replies(messages)

    def evaluate(self, evaluate: Evaluate, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """What `evaluate` finds when all processes take part."""
        self._world.from_first(("evaluate", server_round, shapes(arrays)))
        return evaluate(server_round, _received(self._world, arrays, shapes(arrays), self._parts))

    def finish(self, arrays: ArrayRecord) -> ArrayRecord:
        """Tell the others that the run is over; this process's parts of its result."""
        self._world.from_first(("finish", None, shapes(arrays)))
        return _received(self._world, arrays, shapes(arrays), self._parts)


def follow(grid: LocalGrid, world: Ranks, parts: Shards, evaluate: Evaluate) -> ArrayRecord:
    """In the other processes: do what the first one's grid says, until it finishes; the parts of the result."""
    while True:
        order: tuple[str, Any, Any] = ("", None, None)
        what, detail, told = world.from_first(order)
        if what == "messages":
            _answer(grid, world, detail, told)
            continue
        arrays = _received(world, None, told, parts)
        if what == "finish":
            return arrays
        evaluate(detail, arrays)


def _answer(grid: LocalGrid, world: Ranks, orders: Sequence[Any], told: Sequence[Any]) -> None:
    sent = [_received(world, None, of_record) for of_record in told]
    messages = []
    for node, message_type, group_id, content, keys in orders:
        own = {key: sent[index] for key, index in keys.items()}
        messages.append(Message(filled(content, own.__getitem__), node, message_type, group_id=group_id))
    for reply in grid.replies(messages):
        del reply  # the first process has the same


def _is_same(one: ArrayRecord, other: ArrayRecord) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _received(
    world: Ranks, record: ArrayRecord | None, told: Sequence[Any], parts: Shards | None = None
) -> ArrayRecord:
    """In every process the arrays that the first one has in `record`, or its parts of them."""
    tensors, found = {} if record is None else to_tensors(record), {}
    for name, shape, dtype in told:
        whole = world.tensor_from(0, tensors.get(name), shape, dtype)
        found[name] = whole if parts is None else parts.of(name, whole)
    return to_record(found)
