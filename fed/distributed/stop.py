"""Ends a run after its present step when a signal asks for it, and a client's training when its time is up."""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from fed.distributed.ranks import ALONE, Ranks
from fed.errors import Failed, Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last one when a terminal closes
SAME = 0.5  # seconds within which a second signal is the same request, delivered twice
ORDER = "FEDPO_STOP"  # names the file by which a launcher tells the processes it started


class _Request:
    """The signal by which this process was asked to stop, and when."""

    number = 0  # 0: none
    at = 0.0


_request = _Request()


@contextmanager
def listening(on_first: Callable[[int], object] = lambda number: None) -> Iterator[None]:
    """Take note of the first of `SIGNALS` and call `on_first` with it; a second signal has its usual effect.

    SIGHUP stays ignored where it is, as under `nohup`.
    """

    def take(number: int, _: FrameType | None) -> None:
        if _request.number:
            if time.monotonic() > _request.at + SAME:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        _request.number, _request.at = number, time.monotonic()
        print(
            f"{signal.Signals(number).name}: stopping after this step; send it again to stop at once", file=sys.stderr
        )
        on_first(number)

    deaf = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    before = {number: signal.signal(number, take) for number in SIGNALS if number not in deaf}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _request.number = 0


def requested() -> int:
    """Return the number of the signal by which this process or its launcher was asked to stop; 0: none."""
    order = os.environ.get(ORDER)
    if not _request.number and order is not None:
        with suppress(FileNotFoundError):
            _request.number = int(Path(order).read_text() or 0)  # empty: it is being written
    return _request.number


class Stop:
    """A request to stop, on which all processes of `ranks` agree."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self._ranks = ranks

    def requested(self) -> int:
        """Return the number of the signal that reached any of the processes; 0: none. All call it."""
        return self._ranks.largest(requested())

    def check(self) -> None:
        """End the run here if it was asked to stop. All processes call it.

        Raises:
            Stopped: In all of them.
        """
        number = self.requested()
        if number:
            raise Stopped(number)


class Pauses:
    """The places between two steps of a client's training where it may end. Here it never ends and nothing is kept."""

    def point(self) -> Mapping[str, Any] | None:
        """Return the point to continue from, where the training was stopped before; None: it begins."""
        return None

    def pause(self, point: Callable[[], Mapping[str, Any]]) -> None:
        """Return, or end the training here; `point` makes the point from which it can continue.

        Raises:
            Stopped: If the run was asked to stop.
            Failed: If the client had its time.
        """


class Deadline(Pauses):
    """A limit on the time of a client's training, which keeps nothing: a training that was stopped begins again.

    Args:
        seconds: How long one training may take; None: any time.
        name: The setting that says so.
    """

    def __init__(self, seconds: float | None, name: str = "client_timeout") -> None:
        self._seconds, self._name, self._end = seconds, name, math.inf

    def begin(self) -> None:
        """Start the clock for the next client."""
        self._end = math.inf if self._seconds is None else time.monotonic() + self._seconds

    def pause(self, point: Callable[[], Mapping[str, Any]]) -> None:
        """Compare the clock with the limit, between two steps.

        Raises:
            Failed: If the time is up.
        """
        if time.monotonic() > self._end:
            raise Failed(f"it took longer than {self._name}={self._seconds:g} seconds")
