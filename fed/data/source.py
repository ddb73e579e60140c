"""The place of a data set, in files or on the Hugging Face hub: its records, and which of them are tested on."""

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from fed.data.hub import HubSettings, hub_rows, split_names
from fed.data.readers import data_files, others, records_of, stem
from fed.data.records import Record, as_label
from fed.data.rows import NO_EXTRA, Extra, SplitName

LONGEST_VALUE = 200  # characters of a column that is kept beside a pair; longer ones are texts, not labels
# The words for each split in the names of files, as the hub, trl, axolotl and LLaMA-Factory write them.
SPLIT_NAMES: dict[SplitName, Sequence[str]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
SPLIT_OF: dict[str, SplitName] = {word: split for split, words in SPLIT_NAMES.items() for word in words}
NEWEST = HubSettings()
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(SPLIT_OF)})(?![a-z])", re.IGNORECASE)


@dataclass(frozen=True)
class Reading:
    """The settings that turn records into rows; the names are those of the keys."""

    columns: Mapping[str, str] = field(default_factory=dict)  # the names that a file has for the fields known here
    pairs_per_prompt: str = "all"  # of more than two ranked responses: "all" pairs, or "best_worst"
    # What a record must have: "pairs" of responses; "imitated" ones, for a loss that reads chosen responses only;
    # "responses", one or two; or "prompts", to which responses are to be drawn.
    needs: Literal["pairs", "imitated", "responses", "prompts"] = "pairs"
    loss: str = "dpo"  # the name of the loss, for messages
    holdout_by: str | None = None  # the column whose equal values make one conversation
    tokenizer: str | None = None  # of the model; data sets that are published as token ids are turned into text by it
    hub: HubSettings = NEWEST


class OnHub(NamedTuple):
    """A data set's place on the hub, as the arguments of `Source.records` say."""

    name: str | None
    parts: Sequence[str | None] = (None,)
    has_test: bool = True
    splits: Mapping[str, str] = MappingProxyType({})
    config: str | None = None


@dataclass
class Source:
    """The place of one data set, and the split that is wanted of it."""

    name: str
    path: Path | None  # None: the hub
    seed: int
    test_share: float  # drawn to test on where the data has no test split
    parts: Sequence[str] | None = None  # only files of these parts are read; None: all
    reading: Reading = Reading()
    split: SplitName = "train"
    on_read: Callable[[int], None] = field(default=lambda done: None)  # is told how many rows were read so far
    forms: dict[str, str] = field(default_factory=dict)  # recognised in the records, and where it first was
    read: set[str] = field(default_factory=set)  # fields of the records that something asked for
    unread: set[str] = field(default_factory=set)  # fields that nothing asked for, and no row keeps
    _current: Record | None = None
    _shared: dict[object, object] = field(default_factory=dict)  # one object for equal values of columns

    def records(
        self,
        hub: str | None,
        parts: Sequence[str | None] = (None,),
        has_test: bool = True,
        splits: Mapping[str, str] | None = None,
        config: str | None = None,
    ) -> Iterator[Record]:
        """Yield the records of the wanted split, or of all splits if the source is undivided.

        Args:
            hub: Name on the hub, read when there is no path; None: the data set exists in files only.
            parts: Folders of the hub's data set.
            has_test: True if the hub has a test split; otherwise one is drawn from train.
            splits: The hub's names of "train", "validation" and "test", where they are others.
            config: The configuration of the hub's data set; None: its only one.
        """
        of_hub = OnHub(hub, parts, has_test, splits or {}, config)
        for where, part, fields in self._numbered(of_hub):
            self._current = Record(where, part, fields, self.read)
            yield self._current

    def own_records(self) -> Iterator[Record]:
        """Yield the records of a data set that no function knows: from files, or by its name on the hub.

        Fields have the names that `columns` gives them.
        """
        own_name = {theirs: known for known, theirs in self.reading.columns.items()}
        for where, part, fields in self._numbered(OnHub(self.name if "/" in self.name else None)):
            if own_name:
                fields = self._renamed(where, fields, own_name)
            self._current = Record(where, part, fields, self.read)
            yield self._current

    def extra(self) -> Extra:
        """Return the columns of the record that was yielded last which nothing has asked for."""
        if self._current is None:  # rows made in code
            return NO_EXTRA
        found = {}
        for name, value in self._current.fields.items():
            if name in self.read:
                continue
            try:
                label = as_label(value, self._current.where, name)
            except ValueError:  # half of a character, in a column that nothing reads
                label = None
            if label is not None and len(label) <= LONGEST_VALUE:
                found[name] = self._shared.setdefault(label, label)
            elif value is not None and value == value:
                self.unread.add(name)
        names = tuple(found)
        return Extra(self._shared.setdefault(names, names), tuple(found.values()))  # type: ignore[arg-type]

    @property
    def place(self) -> str:
        """The place of the record that was yielded last."""
        return self.name if self._current is None else self._current.where

    @property
    def undivided(self) -> bool:
        """True if the data does not tell train from test."""
        if self.path is not None:
            return self.files["train"] == self.files["test"]
        return "/" in self.name and self.hub_splits["train"] == self.hub_splits["test"]

    @property
    def remarks(self) -> tuple[str, ...]:
        """Remarks on the files, where they are read otherwise than a user may expect."""
        if self.path is None:
            return ()
        unread = others(self.path)
        found = [f"files that are not read: {', '.join(unread)}"] if unread else []
        splits = {_named_split(path, self.path) for path in self.files["train"]}
        if self.undivided and (only := splits - {None, "train"}):
            found.append(
                f"{self.path} has files of the {' and '.join(sorted(map(str, only)))} split only: they are divided "
                "into training and test pairs; give training files too"
            )
        return tuple(found)

    @cached_property
    def files(self) -> dict[SplitName, list[Path]]:
        """The files of each split; the same files for train and test if either of these has none.

        Files of a validation split are never trained or tested on, unless there are no others.
        """
        assert self.path is not None
        named = functools.partial(_named_split, root=self.path)
        files = self._of_parts([self.path] if os.path.isfile(self.path) else data_files(self.path, named))
        validation = [path for path in files if named(path) == "validation"]
        rest = [path for path in files if path not in validation]
        if not rest:
            rest, validation = files, []
        test = [path for path in rest if named(path) == "test"]
        train = [path for path in rest if path not in test]
        if not train or not test:
            train = test = rest
        return {"train": train, "validation": validation, "test": test}

    @cached_property
    def hub_splits(self) -> dict[SplitName, str | None]:
        """The hub's name of each split; None: it has none, train's if there is no test split.

        Raises:
            ValueError: If the data set cannot be reached, or lacks a split.
        """
        settings = self.reading.hub
        names = split_names(self.name, settings)
        train = settings.train_split or "train"
        for key, split in (("train_split", train), ("test_split", settings.test_split)):
            if split is not None and split not in names:
                raise ValueError(f"{self.name} has no split {split!r} but {', '.join(names)}; set {key}=")
        test = settings.test_split or ("test" if "test" in names and train != "test" else train)
        validation = "validation" if "validation" in names and "validation" not in (train, test) else None
        return {"train": train, "validation": validation, "test": test}

    def _of_parts(self, files: list[Path]) -> list[Path]:
        if self.parts is None:
            return files
        wanted = [path for path in files if any(f"_{_part(path)}".endswith(f"_{part}") for part in self.parts)]
        if not wanted:
            raise ValueError(
                f"data_dir={self.path} holds no file of {' or '.join(self.parts)}, which data set {self.name!r} "
                f"reads; name the files after these, e.g. {self.parts[0]}-train.jsonl.gz, or use another data set"
            )
        return wanted

    def _numbered(self, of_hub: "OnHub") -> Iterator[tuple[str, str, Mapping[str, object]]]:
        """Yield place, part and fields of each record."""
        settings, hub = self.reading.hub, of_hub.name
        if self.path is not None:
            for path in self.files[self.split]:
                part = _part(path)
                for where, fields in records_of(path):
                    yield where, part, fields
        elif hub is None:
            raise ValueError(f"data set {self.name!r} is read from your files; give data_dir=<file or folder>")
        elif hub == self.name:
            split = self.hub_splits[self.split]
            for number, fields in enumerate(hub_rows(hub, split, settings) if split else (), start=1):
                yield f"{hub}, row {number}", hub.rpartition("/")[2], fields
        else:
            drawn = None if of_hub.has_test else (self.split, self.test_share, self.seed)
            name = self.split if of_hub.has_test else "train"
            settings = HubSettings(data_config=of_hub.config, cache_dir=settings.cache_dir)
            for each in of_hub.parts:
                rows = hub_rows(hub, of_hub.splits.get(name, name), settings, part=each, drawn=drawn)
                for number, fields in enumerate(rows, start=1):
                    yield f"{hub}, row {number}", each or "", fields

    def _renamed(self, where: str, fields: Mapping[str, object], own_name: Mapping[str, str]) -> Mapping[str, object]:
        for theirs, known in own_name.items():
            if theirs not in fields:
                names = Record(where, "", fields).names()
                raise ValueError(f"{where}: no field {theirs!r}, which columns.{known} names; the record has {names}")
        kept = {name: value for name, value in fields.items() if name not in own_name and name not in own_name.values()}
        return {**kept, **{known: fields[theirs] for theirs, known in own_name.items()}}


def _named_split(path: Path, root: Path) -> SplitName | None:
    """Return the split that the last such word in the file's name tells, or its folder's name below the root.

    "latest" tells none.
    """
    words = SPLIT_WORD.findall(stem(path))
    if not words and path.parent.parent == root:
        words = [path.parent.name]
    return SPLIT_OF.get(words[-1].lower()) if words else None


def _part(path: Path) -> str:
    """Return harmless-base for harmless-base-test.jsonl.gz and for harmless-base/test.jsonl.gz."""
    own = SPLIT_WORD.sub("", stem(path)).strip("-_. ")
    return own or path.parent.name
