"""Loads the rows of data sets by name: who provides a data set, where its files lie, and how one is split."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fed.config.explain import nearest
from fed.config.places import check_data_file
from fed.data.records import Source
from fed.data.rows import (
    Loaded,
    Preference,
    Skip,
    SplitName,
    in_conversations,
    merged,
    split_by_conversation,
    told_apart,
)

TELL_EVERY = 1000  # rows
Rows = Callable[[Source], Iterator[Preference | Skip]]


class DataSet(NamedTuple):
    """A function that yields the rows of a source, and what the source must know."""

    rows: Rows
    test_share: float  # drawn to test on where the data has no test split
    parts: Sequence[str] | None  # files that are read; None: all
    validation: bool  # the hub has a validation split


DATASETS: dict[str, DataSet] = {}  # filled by load_data.py


def dataset(
    name: str, test_share: float = 0.1, parts: Sequence[str] | None = None, *, validation: bool = False
) -> Callable[[Rows], Rows]:
    """Register the function below as data set `name`; the arguments are those of `DataSet`."""

    def register(rows: Rows) -> Rows:
        DATASETS[name] = DataSet(rows, test_share, parts, validation)
        return rows

    return register


def load(
    names: Sequence[str],
    split: SplitName,
    *,
    data_dir: str | None,
    seed: int,
    cache_dir: str | None = None,
    test_fraction: float | None = None,
    on_read: Callable[[int], None] = lambda done: None,
) -> Loaded:
    """Load one split of all named data sets, one after the other.

    A single file is divided into train and test by conversation, and so is a folder that lacks files of either; what
    makes no row is then counted in the train split only. Test files of the data's own may repeat its conversations.

    Args:
        names: Names under which load_data.py has data sets, e.g. ["hh", "shp"].
        split: "train", "validation" or "test".
        data_dir: A .jsonl or .jsonl.gz file, a folder of such files, or a folder with one folder per data set;
            None: the hub.
        seed: Decides that division and the demo's text.
        cache_dir: Where the hub's downloads are kept; None: the default of `datasets`.
        test_fraction: Share to test on of data without a test split; None: the data set's own.
        on_read: Is called every `TELL_EVERY` rows with how many of a data set were read so far.

    Raises:
        ValueError: If a name is unknown, a file cannot be read, a line is no record, or a split has no row.
    """
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split is {split!r}; expected train, validation or test")
    _check_names(names)
    sources = []
    for name in names:
        known, path = DATASETS[name], _path(name, names, data_dir)
        share = test_fraction or known.test_share
        sources.append(Source(name, split, path, seed, cache_dir, share, known.parts, on_read=on_read))
    found = merged([_read(source) for source in sources])
    if not found.rows and split != "validation":
        raise ValueError(_why_nothing(sources, found.skipped, data_dir))
    return found


def _why_nothing(sources: Sequence[Source], skipped: dict[str, int], data_dir: str | None) -> str:
    """Say why there is no row to train or to test on, and the way out."""
    for source in sources:
        rows = told_apart(_all(source).rows) if source.undivided else []
        if rows:  # of one conversation, which cannot be divided into training and test pairs
            same = "; pairs with one first human turn are one, unless a field conversation tells them apart"
            return (
                f"{source.path} has {in_conversations(rows)}; {source.test_share:g} of the conversations is tested on: "
                f"give more, or a folder with train.jsonl and test.jsonl{same if len(rows) > 1 else ''}"
            )
    names = ", ".join(source.name for source in sources)
    return f"the {sources[0].split} split of {names} has no rows {_reasons(skipped)}; check {data_dir=}"


def load_file(path: str, name: str = "jsonl") -> Loaded:
    """Load all rows of one client's own file, undivided whatever its name says.

    Args:
        path: A .jsonl or .jsonl.gz file.
        name: The data set whose format it has.

    Raises:
        ValueError: If there is no such file or format, a line is no record, or nothing is left.
    """
    _check_names([name])
    if name == "demo":
        raise ValueError("data set 'demo' is made in code and has no files; give the format of the file, e.g. jsonl")
    check_data_file(path)
    found = _all(Source(name, "train", Path(path), seed=0, cache_dir=None, test_share=0.0))
    if not found.rows:
        raise ValueError(f"{path} has no pairs {_reasons(found.skipped)}")
    return replace(found, rows=told_apart(found.rows))


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not names:
        raise ValueError(f"datasets={names!r}; expected a list of {', '.join(DATASETS)}, e.g. datasets=[hh]")
    for name in names:
        if name not in DATASETS:
            raise ValueError(f"no data set {name!r}; load_data.py has {', '.join(DATASETS)}{nearest(name, DATASETS)}")
    if len(set(names)) < len(names):
        raise ValueError(f"datasets={list(names)} names a data set twice; name each once")


def _path(name: str, names: Sequence[str], data_dir: str | None) -> Path | None:
    """Find the file or folder that holds data set `name`; None: the hub, or code."""
    if data_dir is None or name == "demo":
        return None
    if os.path.isdir(os.path.join(data_dir, name)):
        return Path(data_dir, name)
    if len(set(names) - {"demo"}) > 1:
        raise ValueError(f"{data_dir} has no folder {name!r}; several datasets need one folder each in data_dir")
    return Path(data_dir)


def _read(source: Source) -> Loaded:
    """Read one split of one data set."""
    if source.split == "validation" and source.path is None and not DATASETS[source.name].validation:
        return Loaded([], {})
    found = _all(source)
    if source.undivided and source.split != "validation":
        train, test = split_by_conversation(told_apart(found.rows), 1 - source.test_share, source.seed)
        return replace(found, rows=train) if source.split == "train" else Loaded(test, {})
    return found


def _all(source: Source) -> Loaded:
    """Read all that the source holds of its split, or of both if it is undivided."""
    read = []
    for item in DATASETS[source.name].rows(source):
        read.append(item)
        if len(read) % TELL_EVERY == 0:
            source.on_read(len(read))
    rows = [item for item in read if isinstance(item, Preference)]
    skipped = Counter(item.reason for item in read if isinstance(item, Skip))
    return Loaded(rows, skipped, tuple(sorted(source.unread)))


def _reasons(skipped: dict[str, int]) -> str:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in skipped.items())
    return f"(skipped: {reasons or 'nothing'})"
