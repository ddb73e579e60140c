"""A file of results that a long job writes piece by piece, so that a killed job goes on where it was.

`OUT.part` holds the job's settings and the results so far, each piece flushed as it is done. When all are there, `OUT`
appears whole and in order, and `OUT.part` is gone.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fed.files import write_whole, writing
from fed.tracking.line_files import plain

Line = Mapping[str, Any]


class JobFile:
    """The results of one job, as JSON lines; open inside its context, which holds the file's lock.

    Args:
        out: The file to write.
        settings: What decides the results; a part that was begun with others is refused.
        key: Returns what tells one result from the others, and orders them.
    """

    def __init__(self, out: Path, settings: Line, key: Callable[[Line], Any]) -> None:
        self._out, self._part = out, out.with_name(f"{out.name}.part")
        self._settings, self._key = json.loads(json.dumps(plain(settings))), key
        self.lines: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None

    @property
    def done(self) -> set[Any]:
        """The keys of the results that are there."""
        return {self._key(line) for line in self.lines}

    def add(self, lines: Iterable[Line]) -> None:
        """Append results; they are in the file when this returns.

        Raises:
            CannotWrite: If the disk refuses them.
        """
        found = [plain(line) for line in lines]
        self._append(found)
        self.lines += found

    def finish(self) -> list[dict[str, Any]]:
        """Write the results in order to the file itself, and return them.

        Raises:
            CannotWrite: If the disk refuses them.
        """
        found = sorted(self.lines, key=self._key)
        write_lines(self._out, found)
        with writing(self._part):
            self._part.unlink()
        return found

    def __enter__(self) -> "JobFile":
        """Open the file, and read what an earlier process wrote.

        Raises:
            ValueError: If `out` exists, another process writes it, or its part was begun with other settings.
            CannotWrite: If the disk refuses it.
        """
        if self._out.exists():
            raise ValueError(f"{self._out} exists; give another out=, or remove it")
        with writing(self._part):
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("ab+")
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.close()

    def _lock(self) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"another process writes {self._part}; wait for it, or give another out=") from None

    def _read(self) -> None:
        """Read what an earlier process wrote, and cut off a line that it did not finish."""
        assert self._file is not None
        self._file.seek(0)
        content = self._file.read()
        *whole, rest = content.split(b"\n")
        os.truncate(self._part, len(content) - len(rest))
        if not whole:
            self._append([{"settings": self._settings}])
            return
        try:
            begun, *lines = (json.loads(text) for text in whole)
            settings = begun["settings"]
            for line in lines:
                self._key(line)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self._part} is damaged; remove it to begin anew") from error
        if not lines:  # whoever began it has left nothing
            self._file.truncate(0)
            self._append([{"settings": self._settings}])
            return
        if settings != self._settings:
            raise ValueError(
                f"{self._part} was begun with {_difference(settings, self._settings)}; remove it to begin anew"
            )
        self.lines = lines

    def _append(self, lines: Iterable[Line]) -> None:
        assert self._file is not None
        with writing(self._part):
            self._file.write("".join(map(_as_text, lines)).encode())
            self._file.flush()


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Write a file of JSON lines whole.

    Raises:
        CannotWrite: If the disk refuses it.
    """
    with writing(path):
        write_whole(path, "".join(map(_as_text, lines)).encode())


def _as_text(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n"


def _difference(begun: Line, wanted: Line) -> str:
    """Return the first setting that differs: "temperature=1, not 0.7"."""
    name = next(name for name in {**begun, **wanted} if begun.get(name) != wanted.get(name))
    return f"{name}={begun.get(name)}, not {wanted.get(name)}"


def part_of(items: Sequence[Any], shard: str | None) -> list[tuple[int, Any]]:
    """Return the items of one share with their places: "0/8" to "7/8" together hold each item once.

    Raises:
        ValueError: If `shard` is something else.
    """
    first, _, count = (shard or "0/1").partition("/")
    if not (first.isdecimal() and count.isdecimal() and int(first) < int(count)):
        raise ValueError(f"shard={shard} is no share; expected i/n with i from 0 to n - 1, e.g. 0/8")
    return list(enumerate(items))[int(first) :: int(count)]
