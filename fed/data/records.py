"""Records of one data set, from JSON-lines files or the Hugging Face hub; errors name the file and line."""

import gzip
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fed.config.places import check_data_dir, offline
from fed.data.formats import GZIP, LONGEST, check_format
from fed.data.rows import SplitName

LONGEST_LINE = 2**26  # bytes; a damaged or foreign file may be one endless line
MOST_UNPACKED = 200  # times the size of a gzip file, after the first 64 MiB; gzip itself reaches 1,032 (zlib.net, FAQ)
HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can write it, UTF-8 and so a tokenizer cannot
# The words for each split in the names of files, as the hub, trl, axolotl and LLaMA-Factory write them.
SPLIT_NAMES: dict[SplitName, Sequence[str]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
SPLIT_OF: dict[str, SplitName] = {word: split for split, words in SPLIT_NAMES.items() for word in words}
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_OF)})(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a file or one row of the hub; fields are checked when they are asked for."""

    where: str  # "path:line", for messages
    part: str  # the file's name without -train or -test, or the hub's folder
    fields: dict[str, object]

    def text(self, name: str) -> str:
        """Return a string field that can be encoded."""
        value = self._field(name)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: {name!r} is {type(value).__name__}, expected a string")
        if HALF_CHARACTER.search(value):
            raise ValueError(f"{self.where}: {name!r} holds half of a \\ud800-\\udfff pair, expected whole characters")
        return value

    def label(self, name: str) -> str | None:
        """Return a field that is a string or a number, as text; None if there is none, or it is null or NaN.

        1.0 is 1: pandas writes whole numbers so if a column lacks some.
        """
        value = self.fields.get(name)
        if value is None or value != value:
            return None
        if isinstance(value, int | float):
            return str(int(value) if isinstance(value, float) and value.is_integer() else value)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: {name!r} is {type(value).__name__}, expected a string or a number")
        return self.text(name)

    def number(self, name: str) -> float:
        """Return a field that is an int or a float."""
        value = self._field(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.where}: {name!r} is {type(value).__name__}, expected a number")
        return value

    def records(self, name: str) -> "list[Record]":
        """Return a field that is a list of objects, each as a record."""
        value = self._field(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ValueError(f"{self.where}: {name!r} is {type(value).__name__}, expected a list of objects")
        return [Record(self.where, self.part, item) for item in value]

    def _field(self, name: str) -> object:
        if name not in self.fields:
            has = ", ".join(f"{field!r:.40}" for field in list(self.fields)[:8]) or "no field"
            raise ValueError(f"{self.where}: no field {name!r}; the record has {has}")
        return self.fields[name]


@dataclass(frozen=True)
class Source:
    """The place of one data set, and the split that is wanted of it."""

    name: str
    split: SplitName
    path: Path | None  # None: the hub
    seed: int
    cache_dir: str | None
    test_share: float  # drawn to test on where the data has no test split
    parts: Sequence[str] | None = None  # only files of these parts are read; None: all
    unread: set[str] = field(default_factory=set)  # fields of the records that nothing read
    on_read: Callable[[int], None] = field(default=lambda done: None)  # is told how many rows were read so far

    def records(
        self, hub: str | None, parts: Sequence[str | None] = (None,), has_test: bool = True
    ) -> Iterator[Record]:
        """Yield the records of the wanted split, or of all splits if the source is undivided.

        Args:
            hub: Name on the hub, read when there is no path; None: the data set exists in files only.
            parts: Folders of the hub's data set.
            has_test: True if the hub has a test split; otherwise one is drawn from train.
        """
        if self.path is not None:
            for path in self.files[self.split]:
                yield from _file_records(path, _part(path))
        elif hub is None:
            raise ValueError(f"data set {self.name!r} is read from your files; give data_dir=<file or folder>")
        else:
            for part in parts:
                yield from self._hub_records(hub, part, has_test)

    @property
    def undivided(self) -> bool:
        """True if the names of the files do not tell train from test."""
        return self.path is not None and self.files["train"] == self.files["test"]

    @cached_property
    def files(self) -> dict[SplitName, list[Path]]:
        """The files of each split; the same files for train and test if either of these has none.

        Files of a validation split are never trained or tested on, unless there are no others.
        """
        assert self.path is not None
        files = self._of_parts([self.path] if os.path.isfile(self.path) else _json_lines_files(self.path))
        validation = [path for path in files if _named_split(path) == "validation"]
        rest = [path for path in files if path not in validation]
        if not rest:
            rest, validation = files, []
        test = [path for path in rest if _named_split(path) == "test"]
        train = [path for path in rest if path not in test]
        if not train or not test:
            train = test = rest
        return {"train": train, "validation": validation, "test": test}

    def _of_parts(self, files: list[Path]) -> list[Path]:
        if self.parts is None:
            return files
        wanted = [path for path in files if _part(path) in self.parts]
        if not wanted:
            raise ValueError(
                f"data_dir={self.path} holds no file of {' or '.join(self.parts)}, which data set {self.name!r} "
                f"reads; name the files after these, e.g. {self.parts[0]}-train.jsonl.gz, or use another data set"
            )
        return wanted

    def _hub_records(self, hub: str, part: str | None, has_test: bool) -> Iterator[Record]:
        split = self.split if has_test else "train"
        try:
            import datasets  # takes seconds; files need none of it

            table = datasets.load_dataset(hub, data_dir=part, split=split, cache_dir=self.cache_dir)
            if not has_test:
                table = table.train_test_split(test_size=self.test_share, seed=self.seed)[self.split]
            for index, fields in enumerate(table):
                yield Record(f"{hub}:{index}", part or "", fields)
        except Exception as error:  # hub, disk and parser each raise exceptions of their own
            name, reason = offline(), (str(error) or repr(error)).splitlines()[0]
            way_out = "give data_dir=<folder of .jsonl>"
            raise ValueError(
                f"cannot download {hub} from the hub ({reason}); "
                f"{way_out if name is None else f'{name} is set: unset it, or {way_out}'}"
            ) from error


def _json_lines_files(folder: Path) -> list[Path]:
    """List the folder's files; without any, those named train or test in its folders, as Anthropic lays them out."""
    check_data_dir(folder)
    try:
        files = _ending_in_jsonl(folder.iterdir())
        files = files or [path for path in _ending_in_jsonl(folder.glob("*/*")) if _named_split(path)]
    except OSError as error:
        raise ValueError(f"cannot read data_dir={folder} ({error.strerror}); check its permissions") from error
    if not files:
        raise ValueError(f"data_dir={folder} holds no .jsonl or .jsonl.gz file; give the folder that does")
    return files


def _ending_in_jsonl(paths: Iterator[Path]) -> list[Path]:
    return sorted(path for path in paths if path.name.endswith((".jsonl", ".jsonl.gz")) and path.is_file())


def _named_split(path: Path) -> SplitName | None:
    """Return the split that the last such word in the file's name tells; "latest" tells none."""
    words = SPLIT_WORD.findall(path.name)
    return SPLIT_OF[words[-1].lower()] if words else None


def _part(path: Path) -> str:
    """Return harmless-base for harmless-base-test.jsonl.gz and for harmless-base/test.jsonl.gz."""
    stem = SPLIT_WORD.sub("", path.name.removesuffix(".gz").removesuffix(".jsonl")).strip("-_. ")
    return stem or path.parent.name


def _file_records(path: Path, part: str) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield Record(where, part, _parse(where, line))


def _lines(path: Path) -> Iterator[bytes]:
    packed = path.name.endswith(".gz")
    try:
        with open(path, "rb") as file:
            beginning = file.read(LONGEST)
        if not (packed and beginning.startswith(GZIP.magic)):
            check_format(path, beginning)
        with gzip.open(path) if packed else open(path, "rb") as file:
            if packed:
                check_format(path, file.peek(LONGEST), unpacked=True)
            most = max(MOST_UNPACKED * os.path.getsize(path), LONGEST_LINE) if packed else math.inf
            read = 0
            while line := file.readline(LONGEST_LINE + 1):
                if (read := read + len(line)) > most:
                    raise ValueError(f"{path} unpacks to more than {MOST_UNPACKED} times its size, as no text does")
                yield line
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is not a complete gzip file ({error}); download it again") from error
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}); check the file") from error


def _parse(where: str, line: bytes) -> dict[str, object]:
    if len(line) > LONGEST_LINE:
        raise ValueError(f"{where}: the line is longer than {LONGEST_LINE} bytes, expected one object per line")
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); expected one object per line") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: the line is {type(value).__name__}, expected an object")
    return value
