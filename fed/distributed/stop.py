"""SIGINT and SIGTERM let a run end after its present step, with all it has done on the disk; a second one ends it."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from fed.distributed.ranks import ALONE, Ranks
from fed.errors import Failed, Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME = 0.5  # seconds within which a second signal is the same request, delivered twice
ORDER = "FEDPO_STOP"  # the file by which a launcher tells the processes it started


class _Request:
    """What this process was asked by a signal."""

    number = 0
    at = 0.0


_request = _Request()


@contextmanager
def listening(on_first: Callable[[int], object] = lambda number: None) -> Iterator[None]:
    """Inside, the first signal is only taken note of, and told to `on_first`; a second one has its usual effect."""

    def take(number: int, _: FrameType | None) -> None:
        if _request.number:
            if time.monotonic() > _request.at + SAME:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        _request.number, _request.at = number, time.monotonic()
        print(f"{signal.Signals(number).name}: stopping after this step; once more stops at once", file=sys.stderr)
        on_first(number)

    before = {number: signal.signal(number, take) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _request.number = 0


def requested() -> int:
    """The number of the signal by which this process, or the launcher of all, was asked to stop; 0: none."""
    order = os.environ.get(ORDER)
    if not _request.number and order is not None:
        with suppress(FileNotFoundError):
            _request.number = int(Path(order).read_text() or 0)  # empty: it is being written
    return _request.number


class Stop:
    """Whether these processes are to stop, agreed on by all of them."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks

    def asked(self) -> int:
        """The number of the signal that reached any of them; 0: none. All call it."""
        return self._ranks.largest(requested())

    def check(self) -> None:
        """End here if one was asked.

        Raises:
            Stopped: In all of them.
        """
        number = self.asked()
        if number:
            raise Stopped(number)


class Deadline:
    """What `clients.trainer.Pauses` asks for, without keeping anything.

    Args:
        seconds: That a client's training may take; None: any time.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds, self._end = seconds, math.inf

    def begin(self) -> None:
        """A client is asked now."""
        self._end = math.inf if self._seconds is None else time.monotonic() + self._seconds

    def point(self) -> None:
        """A training that was stopped begins again."""

    def pause(self, point: object) -> None:
        """Between two steps.

        Raises:
            Failed: If the time is up.
        """
        if time.monotonic() > self._end:
            raise Failed(f"it took longer than client_timeout={self._seconds:g} seconds")
