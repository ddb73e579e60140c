"""A small federation for tests of checkpoints: three clients and one object with a state."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from torch import nn

from fed.checkpoints.checkpointer import Checkpoint, Checkpointer
from fed.distributed.ranks import ONE_PROCESS, Mesh
from fed.distributed.shards import Shards
from fed.model.arrays import to_record, to_tensors

RUN = {"model": "abc", "number of processes": 1}


PARTS = Shards(nn.Linear(1, 1))  # nothing of it is split


class Clients:
    """The contexts of three clients, and a number that the grid itself stores."""

    def __init__(self, contexts: Sequence[Context] | None = None) -> None:
        self.contexts = contexts or [Context(0, node, {}, RecordDict(), {}) for node in range(3)]
        self.memory = 0

    def state_dict(self) -> Any:
        return {"memory": self.memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory = state["memory"]


class Counter:
    """An object whose state is a number."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def state_dict(self) -> Any:
        return self.value

    def load_state_dict(self, state: Any) -> None:
        self.value = state


def new(folder: Path, *, last: int = 2, run: Mapping[str, Any] = RUN, mesh: Mesh = ONE_PROCESS) -> Checkpointer:
    return Checkpointer(folder, mesh, PARTS, run, every=1, last=last, num_rounds=9)


def weights(server_round: int) -> ArrayRecord:
    return to_record({"w": torch.full((2, 2), float(server_round)), "b": torch.tensor([server_round / 3])})


def trained(server_round: int) -> Clients:
    """Return clients of which 0 stores a new array each round, 1 always the same one, and 2 none."""
    clients = Clients()
    for node, context in enumerate(clients.contexts):
        context.state["visits"] = MetricRecord({"n": server_round, "x": 0.1 * node})
        context.state["words"] = ConfigRecord({"last": f"round {server_round}", "bytes": b"\xff"})
    clients.contexts[0].state["own"] = to_record({"v": torch.tensor([float(server_round), -1.0])})
    clients.contexts[1].state["own"] = SAME
    clients.contexts[2].state["own"] = ArrayRecord()
    clients.memory = server_round
    return clients


SAME = to_record({"v": torch.tensor([7.0])})


def save(checkpointer: Checkpointer, *numbers: int, **accuracies: float) -> None:
    for number in numbers:
        metrics = {"validation_accuracy": accuracies[f"r{number}"]} if f"r{number}" in accuracies else None
        checkpointer.save(number, weights(number), trained(number), {"counter": Counter([number])}, metrics)


def nobody(message: str) -> None:
    raise AssertionError(message)


def restored(folder: Path, checkpoint: Checkpoint | None = None) -> tuple[int, dict[str, Any], Clients, Any]:
    """Restore the checkpoint in a new process."""
    reader, clients, counter = new(folder), Clients(), Counter()
    checkpoint = checkpoint or reader.newest(nobody)
    assert checkpoint is not None
    arrays = reader.restore(checkpoint, weights(0), clients, {"counter": counter})
    return checkpoint.server_round, to_tensors(arrays), clients, counter.value


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_last(path: Path) -> None:
    """Flip the last bit of the last number, which no reader of the format notices."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
