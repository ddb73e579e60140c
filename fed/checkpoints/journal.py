"""`Journal`: the replies of the current round on the disk, so that a resumed run need not train those clients again."""

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
from fed.distributed.stop import Pauses, Stop
from fed.errors import Failed, Stopped
from fed.files import sync, writing
from fed.tracking.log import Recorder


class Journal(Pauses):
    """A store of the current round's replies: a client runs only if its reply is not stored yet.

    A client that is stopped during its training leaves a point from which its training resumes.

    Args:
        folder: The folder of the checkpoints; None writes nothing.
        process: The number of this process among all.
        own: The processes that train a client together.
        files: The files of the arrays that clients store.
        log: The log that the clients report to.
        run: Plain values that identify the run; replies of another run are ignored.
        client_timeout: Seconds that a client's training may take; None sets no limit.
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
        self._path: Path | None = None  # of the current client's point
        self._point: Mapping[str, Any] | None = None

    def answer(
        self, server_round: int, what: str, message: Message, context: Context, run: Callable[[], Message]
    ) -> Message:
        """Return the client's reply from the disk, or else the reply that `run` returns.

        Args:
            server_round: The current round.
            what: A name for this message, unique in the round.
            message: The message to the client.
            context: The client's context.
            run: Runs the client.
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
        saved = self._read(path, own, node)
        if all(self._own.gather(saved is not None)):
            assert saved is not None
            for key, record in saved["context"].items():
                context.state[key] = record
            self._log.replay(saved["events"])
            return Message(saved["content"], reply_to=message)
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
        """Return the point at which this client's training was stopped; None if it was not."""
        return self._point

    def pause(self, point: Callable[[], Mapping[str, Any]]) -> None:
        """Save the point and raise if the run was asked to stop; called between two steps of a client's training.

        Raises:
            Stopped: In all processes that train the client.
            Failed: In all of them, if `client_timeout` is over.
        """
        if self._timeout is not None and self._own.largest(time.monotonic() > self._deadline):
            raise Failed(f"it took longer than client_timeout={self._timeout:g} seconds")
        number = self._stop.requested()
        if not number:
            return
        if self._path is not None:
            with writing(self._path):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                serialize.save({"run": self._run, "point": point(), "events": self._log.events()}, self._path)
                sync(self._path)
        raise Stopped(number)

    def _read_point(self, path: Path) -> Mapping[str, Any] | None:
        """Read a point; None unless all processes that train the client have one."""
        found = self._load(path)
        return found if all(self._own.gather(found is not None)) else None

    def _read(self, path: Path, own: Path, node: int) -> dict[str, Any] | None:
        saved = self._load(path)
        if saved is None:
            return None
        try:
            arrays = self._files.read(own, node) if saved["stores"] else {}
        except serialize.Damaged:
            return None
        return {**saved, "context": {**saved["context"], **arrays}}

    def _load(self, path: Path) -> dict[str, Any] | None:
        """Read what this run saved; None if it is missing, damaged or of another run."""
        try:
            saved: dict[str, Any] = serialize.load(path)
        except serialize.Damaged:  # or missing
            return None
        return saved if saved["run"] == self._run else None
