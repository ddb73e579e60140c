"""Strategies that need whole arrays, where every process holds a part of each.

The first process runs the strategy; the others do what it tells them. Arrays go out in parts and come back whole, one
tensor after the other, so that whole ones exist in the first process only.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from flwr.app import ArrayRecord, Message, MetricRecord

from fed.arrays import to_record, to_tensors
from fed.grid import LocalGrid
from fed.group_grid import filled, outline
from fed.ranks import Ranks
from fed.sharding import Parts

Evaluate = Callable[[int, ArrayRecord], MetricRecord | None]


class LeaderGrid(LocalGrid):
    """The first process's grid: what the strategy sends reaches the clients in all processes.

    Args:
        grid: What trains clients with this process's parts.
        world: All processes.
        parts: How arrays are split.
    """

    def __init__(self, grid: LocalGrid, world: Ranks, parts: Parts) -> None:
        super().__init__(grid.app, grid.contexts, streams=grid.streams)
        self._grid, self._world, self._parts = grid, world, parts

    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """What all processes' clients answer, whole."""
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
        self._world.from_first(("messages", orders, list(map(_shapes, records))))
        sent = [_split(self._world, self._parts, record, _shapes(record)) for record in records]
        for message, (*_, keys) in zip(messages, orders, strict=True):
            for key, index in keys.items():
                message.content[key] = sent[index]
        for reply in self._grid.replies(messages):
            for key, record in list(reply.content.array_records.items()):
                reply.content[key] = to_record(self._parts.whole(to_tensors(record), keep=True))
            yield reply

    def evaluate(self, evaluate: Evaluate, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """What `evaluate` finds when all processes take part."""
        self._world.from_first(("evaluate", server_round, _shapes(arrays)))
        return evaluate(server_round, _split(self._world, self._parts, arrays, _shapes(arrays)))

    def finish(self, arrays: ArrayRecord) -> ArrayRecord:
        """Tell the others that the run is over; this process's parts of its result."""
        self._world.from_first(("finish", None, _shapes(arrays)))
        return _split(self._world, self._parts, arrays, _shapes(arrays))


def follow(grid: LocalGrid, world: Ranks, parts: Parts, evaluate: Evaluate) -> ArrayRecord:
    """In the other processes: do what the first one's grid says, until it finishes; the parts of the result."""
    while True:
        order: tuple[str, Any, Any] = ("", None, None)
        what, detail, shapes = world.from_first(order)
        if what == "messages":
            _answer(grid, world, parts, detail, shapes)
            continue
        arrays = _split(world, parts, None, shapes)
        if what == "finish":
            return arrays
        evaluate(detail, arrays)


def _answer(grid: LocalGrid, world: Ranks, parts: Parts, orders: Sequence[Any], shapes: Sequence[Any]) -> None:
    sent = [_split(world, parts, None, of_record) for of_record in shapes]
    messages = []
    for node, message_type, group_id, content, keys in orders:
        own = {key: sent[index] for key, index in keys.items()}
        messages.append(Message(filled(content, own.__getitem__), node, message_type, group_id=group_id))
    for reply in grid.replies(messages):
        for record in reply.content.array_records.values():
            parts.whole(to_tensors(record), keep=False)


def _is_same(one: ArrayRecord, other: ArrayRecord) -> bool:
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def _shapes(record: ArrayRecord) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in to_tensors(record).items()]


def _split(world: Ranks, parts: Parts, record: ArrayRecord | None, shapes: Sequence[Any]) -> ArrayRecord:
    """Each process's parts of what the first one has."""
    tensors, found = {} if record is None else to_tensors(record), {}
    for name, shape, dtype in shapes:
        whole = tensors[name].contiguous() if record is not None else torch.empty(shape, dtype=dtype)
        dist.broadcast(whole, group=world.group, group_src=0)
        found[name] = parts.of(name, whole)
    return to_record(found)
