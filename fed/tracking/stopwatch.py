"""Wall time of a run by phase."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """A stopwatch per phase; of nested phases only the innermost runs."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._phases: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Account the time spent inside to `name`."""
        self._charge()
        self._phases.append(name)
        try:
            yield
        finally:
            self._charge()
            self._phases.pop()

    def seconds(self) -> dict[str, float]:
        """Return the seconds so far by phase."""
        self._charge()
        return dict(self._seconds)

    def set(self, seconds: Mapping[str, float]) -> None:
        """Set the seconds so far by phase."""
        self._charge()
        self._seconds = dict(seconds)

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._phases:
            self._seconds[self._phases[-1]] = self._seconds.get(self._phases[-1], 0.0) + now - self._since
        self._since = now
