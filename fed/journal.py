"""Replies of the clients of a round that has begun, so that a run that is cut off need not train them again."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Context, Message

from fed import trees
from fed.keeper import BEGUN, ClientFiles, small
from fed.ranks import Ranks
from fed.relay import Event


class Log(Protocol):
    """The part of `fed.tracking.Tracker` that is told of clients, or what stands for it."""

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """About to train that many pairs."""

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Metrics of the round."""

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of one optimizer step."""

    def advance(self, pairs: int) -> None:
        """Pairs trained now."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time spent inside belongs to this phase."""

    def seconds(self) -> dict[str, float]:
        """Time by phase so far."""

    def spend(self, seconds: Mapping[str, float]) -> None:
        """That much more time was spent, by phase, before this process began."""


class Recorder:
    """A log that hands on what it is told of clients and can say what that was."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._events: list[Event] = []
        self._before: dict[str, float] = {}

    def begin(self) -> None:
        """Forget what was."""
        self._events, self._before = [], self._log.seconds()

    def events(self) -> list[Event]:
        """What was told since `begin`, and the time that passed."""
        spent = {name: seconds - self._before.get(name, 0.0) for name, seconds in self._log.seconds().items()}
        return [*self._events, ("spend", (spent,), {})]

    def replay(self, events: list[Event]) -> None:
        """Tell the log what it was told then."""
        for method, arguments, named in events:
            getattr(self._log, method)(*arguments, **named)

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """About to train that many pairs."""
        self._pass_on("start_client", server_round, client_id, pairs)

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Metrics of the round."""
        self._pass_on("client", client_id, server_round, split, dict(metrics))

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of one optimizer step."""
        self._pass_on("update", client_id, split, dict(metrics), step=step)

    def advance(self, pairs: int) -> None:
        """Pairs trained now."""
        self._pass_on("advance", pairs)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time spent inside belongs to this phase."""
        return self._log.phase(name)

    def _pass_on(self, method: str, *arguments: Any, **named: Any) -> None:
        self._events.append((method, arguments, named))
        getattr(self._log, method)(*arguments, **named)


class Journal:
    """Runs clients, or finds what they answered before the run was cut off.

    Args:
        folder: Of the checkpoints.
        process: Number of this process among all.
        own: The processes that train a client together.
        files: What clients' own arrays are written by.
        log: What the clients report to.
    """

    def __init__(self, folder: Path, process: int, own: Ranks, files: ClientFiles, log: Recorder) -> None:
        self._folder, self._process, self._own, self._files, self._log = folder, process, own, files, log

    def answer(
        self, server_round: int, what: str, message: Message, context: Context, run: Callable[[], Message]
    ) -> Message:
        """What the client answers; `run` is called if that is not known yet.

        Args:
            server_round: The round that has begun.
            what: A name for this message that no other of the round has.
            message: To the client.
            context: Of the client.
            run: Has the client answer.
        """
        folder = self._folder / f"round-{server_round}{BEGUN}"
        path, own = (folder / f"{kind}-{what}-{self._process}.safetensors" for kind in ("reply", "client"))
        node = message.metadata.dst_node_id
        kept = self._read(path, own, node)
        if all(self._own.gather(kept is not None)):
            assert kept is not None
            for key, record in kept["context"].items():
                context.state[key] = record
            self._log.replay(kept["events"])
            return Message(kept["content"], reply_to=message)
        self._log.begin()
        reply = run()
        with self._log.phase("checkpoint"):
            folder.mkdir(parents=True, exist_ok=True)
            stores = self._files.write(own, node, context)
            records = {"content": reply.content, "context": small(context), "stores": stores}
            trees.save({**records, "events": self._log.events()}, path)
        return reply

    def _read(self, path: Path, own: Path, node: int) -> dict[str, Any] | None:
        try:
            kept: dict[str, Any] = trees.load(path)
            arrays = self._files.read(own, node) if kept["stores"] else {}
        except trees.Damaged:  # or not there
            return None
        return {**kept, "context": {**kept["context"], **arrays}}
