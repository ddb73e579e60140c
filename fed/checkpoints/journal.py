"""Replies of the clients of a round that has begun, so that a run that is cut off need not train them again."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, Message

from fed.checkpoints import serialize
from fed.checkpoints.checkpointer import BEGUN
from fed.checkpoints.contexts import ClientFiles, small
from fed.distributed.ranks import Ranks
from fed.distributed.stop import Stop
from fed.errors import Failed, Stopped
from fed.files import sync, writing
from fed.tracking.log import Recorder


class Journal:
    """Runs clients, or finds what they answered before the run was cut off.

    A client that is stopped in its training leaves a point from which it goes on.

    Args:
        folder: Of the checkpoints; None: nothing is kept.
        process: Number of this process among all.
        own: The processes that train a client together.
        files: What clients' own arrays are written by.
        log: What the clients report to.
        run: What the run is; what was kept by another one does not count.
        client_timeout: Seconds that a client's training may take.
    """

    def __init__(
        self,
        folder: Path | None,
        process: int,
        own: Ranks,
        files: ClientFiles,
        log: Recorder,
        run: Mapping[str, Any],
        client_timeout: float | None = None,
    ) -> None:
        self._run, self._timeout, self._deadline = dict(run), client_timeout, math.inf
        self._folder, self._process, self._own, self._files, self._log = folder, process, own, files, log
        self._stop = Stop(own)
        self._path: Path | None = None  # of the point of the client that is asked now
        self._point: Mapping[str, Any] | None = None

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
        self._stop.check()
        self._deadline = math.inf if self._timeout is None else time.monotonic() + self._timeout
        self._log.begin()
        if self._folder is None:
            return run()
        folder = self._folder / f"round-{server_round}{BEGUN}"
        kinds = ("reply", "client", "point")
        path, own, point = (folder / f"{kind}-{what}-{self._process}.safetensors" for kind in kinds)
        node = message.metadata.dst_node_id
        kept = self._read(path, own, node)
        if all(self._own.gather(kept is not None)):
            assert kept is not None
            for key, record in kept["context"].items():
                context.state[key] = record
            self._log.replay(kept["events"])
            return Message(kept["content"], reply_to=message)
        found = self._read_point(point)
        self._path, self._point = point, found and found["point"]
        if found is not None:
            self._log.begin(found["events"])
        reply = run()
        with self._log.phase("checkpoint"), writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            stores = self._files.write(own, node, context)
            records = {"run": self._run, "content": reply.content, "context": small(context), "stores": stores}
            serialize.save({**records, "events": self._log.events()}, path)
            point.unlink(missing_ok=True)
        return reply

    def point(self) -> Mapping[str, Any] | None:
        """Where the training of this client was stopped; None: it begins."""
        return self._point

    def pause(self, point: Callable[[], Mapping[str, Any]]) -> None:
        """End here if that was asked, with a point to go on from; between two steps of a client's training.

        Raises:
            Stopped: In all processes that train the client.
            Failed: In all of them, if it has had its time.
        """
        if self._timeout is not None and self._own.largest(time.monotonic() > self._deadline):
            raise Failed(f"it took longer than client_timeout={self._timeout:g} seconds")
        number = self._stop.asked()
        if not number:
            return
        if self._path is not None:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                serialize.save({"run": self._run, "point": point(), "events": self._log.events()}, self._path)
                sync(self._path)
        raise Stopped(number)

    def _read_point(self, path: Path) -> Mapping[str, Any] | None:
        """The same answer, yes or no, in all processes that train the client."""
        found = self._load(path)
        return found if all(self._own.gather(found is not None)) else None

    def _read(self, path: Path, own: Path, node: int) -> dict[str, Any] | None:
        kept = self._load(path)
        if kept is None:
            return None
        try:
            arrays = self._files.read(own, node) if kept["stores"] else {}
        except serialize.Damaged:
            return None
        return {**kept, "context": {**kept["context"], **arrays}}

    def _load(self, path: Path) -> dict[str, Any] | None:
        """What this run kept there; None: nothing that is whole."""
        try:
            kept: dict[str, Any] = serialize.load(path)
        except serialize.Damaged:  # or not there
            return None
        return kept if kept["run"] == self._run else None
