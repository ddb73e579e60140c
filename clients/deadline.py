"""The end of a training that takes too long, where the grid cannot end it."""

import math
import time

from fed.errors import Failed


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
