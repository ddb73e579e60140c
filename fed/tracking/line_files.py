"""The `.jsonl` files of a run: one JSON object per line, appended, cut back when a run goes on from before."""

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from fed.files import cut_off, writing


class LineFiles:
    """The files of one folder, each opened when its first line is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, TextIO] = {}

    def write(self, name: str, line: Mapping[str, object]) -> None:
        """Append an object; it reaches the file at once.

        Raises:
            CannotWrite: If the disk refuses it.
        """
        with writing(self._folder / name):
            file = self._file(name)
            file.write(json.dumps(plain(line), allow_nan=False) + "\n")
            file.flush()

    def state_dict(self) -> dict[str, int]:
        """Bytes of each file, which are on the disk now."""
        for file in self._open.values():
            file.flush()
            os.fsync(file.fileno())
        return {path.name: path.stat().st_size for path in self._folder.glob("*.jsonl")}

    def load_state_dict(self, sizes: Mapping[str, int]) -> None:
        """Go on with the files as they were then: what was written later is cut off."""
        self.close()
        for path in self._folder.glob("*.jsonl"):
            cut_off(path, sizes.get(path.name, 0))

    def close(self) -> None:
        """Close all files; writing opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _file(self, name: str) -> TextIO:
        if name not in self._open:
            self._open[name] = (self._folder / name).open("a", encoding="utf-8")
        return self._open[name]


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file in order, none if there is no file; one that was cut off in writing is left out."""
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return (json.loads(text) for text in texts if text.endswith("\n"))


def plain(value: Any) -> Any:
    """The value as JSON knows it: scalars of numpy and torch become numbers, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
