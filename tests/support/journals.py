"""One process of a run with a journal, for tests of replies that outlive it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from fed.checkpoints.contexts import ClientFiles
from fed.checkpoints.journal import Journal
from fed.distributed.ranks import ALONE, Ranks
from fed.model.arrays import to_record
from fed.tracking.log import Log as BaseLog
from fed.tracking.log import Recorder

RUN = {"model": "abc"}


Event = tuple[Any, ...]


class Log(BaseLog):
    """A log that remembers its reports; its clock stands where it is set."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.clock: dict[str, float] = {}

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        self.told.append(("start_client", server_round, client_id, pairs))

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        self.told.append(("client", client_id, server_round, split, dict(metrics)))

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        self.told.append(("update", client_id, split, dict(metrics), step))

    def advance(self, pairs: int) -> None:
        self.told.append(("advance", pairs))

    def seconds(self) -> dict[str, float]:
        return dict(self.clock)

    def spend(self, seconds: Mapping[str, float]) -> None:
        self.told.append(("spend", dict(seconds)))
        for name, more in seconds.items():
            self.clock[name] = self.clock.get(name, 0.0) + more


class Run:
    """One process of a run: its log, recorder, journal and client, whose calls it counts."""

    def __init__(
        self, folder: Path | None, *, own: Ranks = ALONE, process: int = 0, run: Any = RUN, timeout: float | None = None
    ) -> None:
        self.log = Log()
        self.recorder = Recorder(self.log)
        self.files = ClientFiles()
        self.journal = Journal(folder, process, own, self.files, self.recorder, run, client_timeout=timeout)
        self.context = Context(0, 5, {}, RecordDict(), {})
        self.calls = 0

    def ask(
        self, what: str = "train-5-1", *, server_round: int = 3, client: Callable[..., Message] | None = None
    ) -> Message:
        """Return the client's reply to one message."""
        message = Message(RecordDict(), 5, "train")

        def answer() -> Message:
            self.calls += 1
            return (client or self.train)(message)

        return self.journal.answer(server_round, what, message, self.context, answer)

    def train(self, message: Message) -> Message:
        """Report everything a client can report, store records of all kinds, reply with a number that JSON lacks."""
        self.recorder.start_client(3, 5, 8)
        self.recorder.update(5, "train", {"loss/train": 0.5}, step=1)
        self.recorder.advance(8)
        self.recorder.client(5, 3, "train", {"loss": 0.25})
        self.log.clock = {**self.log.clock, "train": self.log.clock.get("train", 0.0) + 1.5}
        self.context.state["counters"] = MetricRecord({"n": 2})
        self.context.state["words"] = ConfigRecord({"b": b"\xff"})
        self.context.state["own"] = to_record({"v": torch.tensor([1 / 3], dtype=torch.float64)})
        arrays = to_record({"w": torch.tensor([0.1, torch.nan, -0.0])})
        return Message(
            RecordDict({"arrays": arrays, "metrics": MetricRecord({"loss": float("inf")})}), reply_to=message
        )


TOLD = [
    ("start_client", 3, 5, 8),
    ("update", 5, "train", {"loss/train": 0.5}, 1),
    ("advance", 8),
    ("client", 5, 3, "train", {"loss": 0.25}),
]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
