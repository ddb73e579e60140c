"""TensorBoard event files: one per folder, appended to until the run ends, also after a resume."""

import os
import socket
import struct
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from fed.files import truncate

MAX_OPEN_EVENT_FILES = 64  # a thousand clients must not run into the limit on open files
FLUSH_SECONDS = 10.0  # the longest that a client's values wait before they reach the disk


class EventFiles:
    """TensorBoard files, one per folder, of which the last used ones are open.

    A `SummaryWriter` of tensorboardX costs two threads and a pipe, and starts a new file whenever a client comes back.
    This class appends the same records, with tensorboardX's protos and checksums, to one file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sizes: dict[str, int] = {}  # of closed files, by folder
        self._name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()
        self._next_flush = 0.0

    def write(self, folder: str, tags: Mapping[str, float], step: int) -> None:
        """Append one event with all these values."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in tags.items()]
        self.add(folder, Summary(value=values), step)
        if time.monotonic() >= self._next_flush:
            self.flush()

    def add(self, folder: str, summary: Any, step: int) -> None:
        """Append one event with a summary that a function of `tensorboardX.summary` returned."""
        from tensorboardX.proto.event_pb2 import Event

        event = Event(wall_time=time.time(), step=step, summary=summary)
        self._file(folder).write(_record(event.SerializeToString()))

    def flush(self) -> None:
        """Flush all files."""
        for file in self._open.values():
            file.flush()
        self._next_flush = time.monotonic() + FLUSH_SECONDS

    def close(self) -> None:
        """Flush and close all files."""
        while self._open:
            self._close(*self._open.popitem())

    def state_dict(self) -> dict[str, Any]:
        """Return the name and the sizes of all files, whose content is now on the disk."""
        self.flush()
        for file in self._open.values():
            os.fsync(file.fileno())
        return {"name": self._name, "sizes": {**self._sizes, **{name: f.tell() for name, f in self._open.items()}}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Truncate all files to the sizes that `state_dict` returned, and remove newer ones."""
        self.close()
        self._name, self._sizes = state["name"], dict(state["sizes"])
        for path in self._folder.glob("*/events.out.tfevents.*"):
            if path.name != self._name or path.parent.name not in self._sizes:
                path.unlink()
            else:
                truncate(path, self._sizes[path.parent.name])

    def _file(self, folder: str) -> BinaryIO:
        if folder in self._open:
            self._open.move_to_end(folder)
            return self._open[folder]
        while len(self._open) >= MAX_OPEN_EVENT_FILES:
            self._close(*self._open.popitem(last=False))
        self._open[folder] = file = _open_event_file(self._folder / folder / self._name)
        return file

    def _close(self, folder: str, file: BinaryIO) -> None:
        file.flush()
        self._sizes[folder] = file.tell()
        file.close()


def _open_event_file(path: Path) -> BinaryIO:
    from tensorboardX.proto.event_pb2 import Event

    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    if file.tell() == 0:
        file.write(_record(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()))
    return file


def _record(data: bytes) -> bytes:
    """Return a TFRecord: length, checksum of the length, data, checksum of the data."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
