"""The `.jsonl` files of a run: one JSON object per line, appended, and truncated when a run is resumed."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from fed.files import truncate, writing


class LineFiles:
    """The `.jsonl` files of one folder, each opened when its first line is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, TextIO] = {}

    def write(self, name: str, line: Mapping[str, object]) -> None:
        """Append an object; it reaches the file at once.

        Raises:
            CannotWrite: If the disk refuses the line.
        """
        with writing(self._folder / name):
            file = self._file(name)
            file.write(json.dumps(plain(line), allow_nan=False) + "\n")
            file.flush()

    def state_dict(self) -> dict[str, int]:
        """Return the size of each file, whose content is now on the disk."""
        for file in self._open.values():
            file.flush()
            os.fsync(file.fileno())
        return {path.name: path.stat().st_size for path in self._folder.glob("*.jsonl")}

    def load_state_dict(self, sizes: Mapping[str, int]) -> None:
        """Truncate all files to the sizes that `state_dict` returned; files that are not among them become empty."""
        self.close()
        for path in self._folder.glob("*.jsonl"):
            truncate(path, sizes.get(path.name, 0))

    def close(self) -> None:
        """Close all files; the next `write` opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _file(self, name: str) -> TextIO:
        if name not in self._open:
            self._open[name] = (self._folder / name).open("a", encoding="utf-8")
        return self._open[name]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Return the objects of a file in order, without a last line that is incomplete; none if there is no file."""
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return (json.loads(text) for text in texts if text.endswith("\n"))


def plain(value: Any) -> Any:
    """Return the value as JSON can hold it: numpy and torch scalars become numbers, NaN and infinity None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
