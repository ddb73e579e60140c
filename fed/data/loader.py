"""Loads the rows of data sets by name: who provides a data set, where its files lie, and how one is split."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, get_args

from fed.config.explain import nearest
from fed.config.places import check_data_file
from fed.data.forms import own_rows
from fed.data.rows import (
    Loaded,
    Preference,
    Skip,
    SplitName,
    in_conversations,
    merged,
    roles_without_user,
    split_by_conversation,
    told_apart,
)
from fed.data.source import Reading, Source

TELL_EVERY = 1000  # rows
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PLAIN = Reading()
Rows = Callable[[Source], Iterator[Preference | Skip]]
OnRead = Callable[[int], None]


class DataSet(NamedTuple):
    """A function that yields the rows of a source, and what the source must know."""

    rows: Rows
    test_share: float = 0.1  # drawn to test on where the data has no test split
    parts: Sequence[str] | None = None  # files that are read; None: all
    validation: bool = False  # the hub has a validation split


DATASETS: dict[str, DataSet] = {}  # filled by load_data.py
OF_THE_HUB = DataSet(own_rows, validation=True)  # any name "owner/name"


def dataset(
    name: str, test_share: float = 0.1, parts: Sequence[str] | None = None, *, validation: bool = False
) -> Callable[[Rows], Rows]:
    """Register the function below as data set `name`; the arguments are those of `DataSet`."""

    def register(rows: Rows) -> Rows:
        DATASETS[name] = DataSet(rows, test_share, parts, validation)
        return rows

    return register


def load(names: Sequence[str], split: SplitName, **how: object) -> Loaded:
    """Load one split of all named data sets, one after the other; the arguments are those of `load_splits`."""
    if split not in get_args(SplitName):
        raise ValueError(f"split is {split!r}; expected train, validation or test")
    return load_splits(names, wanted=(split,), **how)[split]  # type: ignore[arg-type]


def load_splits(
    names: Sequence[str],
    *,
    data_dir: str | None,
    seed: int,
    test_fraction: float | None = None,
    reading: Reading = PLAIN,
    wanted: Sequence[SplitName] = get_args(SplitName),
    on_read: Callable[[SplitName], OnRead] = lambda split: lambda done: None,
) -> dict[SplitName, Loaded]:
    """Load splits of all named data sets, one after the other.

    A single file is divided into train and test by conversation, and so is a folder that lacks files of either; what
    makes no row is then counted in the train split only. Test files of the data's own may repeat its conversations.

    Args:
        names: Names under which load_data.py has data sets, e.g. ["hh", "shp"], or names on the hub.
        data_dir: A file, a folder of files, or a folder with one folder per data set; None: the hub.
        seed: Decides that division and the demo's text.
        test_fraction: Share to test on of data without a test split; None: the data set's own.
        reading: How records become rows, and where the hub's downloads are kept.
        wanted: The splits to load.
        on_read: Returns for a split what is called every `TELL_EVERY` rows with how many of a data set were read.

    Raises:
        ValueError: If a name is unknown, a file cannot be read, a line is no record, or a split has no row.
    """
    _check_names(names)
    sources: list[dict[SplitName, Source]] = []
    for name in names:
        known, path = _known(name), _path(name, names, data_dir)
        place = name, path, seed, test_fraction or known.test_share, known.parts, reading
        sources.append({split: Source(*place, split=split, on_read=on_read(split)) for split in wanted})
    read = [_read(of_name) for of_name in sources]
    found = {split: merged([each[split] for each in read]) for split in wanted}
    for split in wanted:
        if split != "validation" and not found[split].rows:
            of_split = [of_name[split] for of_name in sources]
            raise ValueError(_why_nothing(of_split, merged([*found.values()]).skipped, data_dir))
    return found


def _why_nothing(sources: Sequence[Source], skipped: dict[str, int], data_dir: str | None) -> str:
    """Say why there is no row to train or to test on, and the way out."""
    for source in sources:
        rows = told_apart(_all(source).rows) if source.undivided else []
        if rows:  # of one conversation, which cannot be divided into training and test pairs
            same = (
                "; pairs with one first human turn are one, unless a field conversation or holdout_by=COLUMN tells "
                "them apart"
            )
            if column := source.reading.holdout_by:
                same = f"; pairs with one value of holdout_by={column} are one"
            elif roles := roles_without_user(rows):
                same = f"; no turn is a user's: the roles are {', '.join(roles)}, and docs/data.md lists those known"
            return (
                f"{source.path or source.name} has {in_conversations(rows)}; {source.test_share:g} of the conversations"
                f" is tested on: give more, or a folder with train.jsonl and test.jsonl{same if len(rows) > 1 else ''}"
            )
    names = ", ".join(source.name for source in sources)
    return f"the {sources[0].split} split of {names} has no rows {_reasons(skipped)}; check {data_dir=}"


def load_file(path: str, name: str = "files", reading: Reading = PLAIN) -> Loaded:
    """Load all rows of one client's own file, undivided whatever its name says.

    Args:
        path: A file of records.
        name: The data set whose format it has.
        reading: How records become rows.

    Raises:
        ValueError: If there is no such file or format, a line is no record, or nothing is left.
    """
    _check_names([name])
    if name == "demo":
        raise ValueError("data set 'demo' is made in code and has no files; give the format of the file, e.g. files")
    check_data_file(path)
    found = _all(Source(name, Path(path), seed=0, test_share=0.0, reading=reading))
    if not found.rows:
        raise ValueError(f"{path} has no pairs {_reasons(found.skipped)}")
    return replace(found, rows=told_apart(found.rows))


def _known(name: str) -> DataSet:
    return OF_THE_HUB if "/" in name else DATASETS[name]


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not names:
        raise ValueError(f"datasets={names!r}; expected a list of {', '.join(DATASETS)}, e.g. datasets=[hh]")
    for name in names:
        if name not in DATASETS and not HUB_NAME.fullmatch(name):
            own = f"; files of your own are datasets=[files] data_dir={name}" if os.path.exists(name) else ""
            raise ValueError(
                f"no data set {name!r}; load_data.py has {', '.join(DATASETS)}{nearest(name, DATASETS)}, and a name "
                f"such as owner/name is the hub's{own}"
            )
    if len(set(names)) < len(names):
        raise ValueError(f"datasets={list(names)} names a data set twice; name each once")


def _path(name: str, names: Sequence[str], data_dir: str | None) -> Path | None:
    """Find the file or folder that holds data set `name`; None: the hub, or code."""
    if data_dir is None or name == "demo":
        return None
    for own in (name, name.rpartition("/")[2]):
        if os.path.isdir(os.path.join(data_dir, own)):
            return Path(data_dir, own)
    if len(set(names) - {"demo"}) > 1:
        raise ValueError(f"{data_dir} has no folder {name!r}; several datasets need one folder each in data_dir")
    return Path(data_dir)


def _read(sources: dict[SplitName, Source]) -> dict[SplitName, Loaded]:
    """Read splits of one data set, and data that does not tell train from test once for both."""
    found: dict[SplitName, Loaded] = {}
    for split, source in sources.items():
        if split in found:
            continue
        if split == "validation" and source.path is None and not _known(source.name).validation:
            found[split] = Loaded([], {})
        elif split != "validation" and source.undivided:
            every = _all(source)
            sides = split_by_conversation(told_apart(every.rows), 1 - source.test_share, source.seed)
            found["train"], found["test"] = replace(every, rows=sides[0]), Loaded(sides[1], {})
        else:
            found[split] = _all(source)
    return {split: found[split] for split in sources}


def _all(source: Source) -> Loaded:
    """Read all that the source holds of its split, or of both if it is undivided."""
    rows: list[Preference] = []
    skipped: Counter[str] = Counter()
    for number, item in enumerate(_known(source.name).rows(source), start=1):
        if isinstance(item, Skip):
            skipped[item.reason] += 1
        else:
            rows.append(_with_columns(item, source))
        if number % TELL_EVERY == 0:
            source.on_read(number)
    return Loaded(rows, skipped, tuple(sorted(source.unread)), tuple(source.forms), source.remarks)


def _with_columns(row: Preference, source: Source) -> Preference:
    """Return the row with the other columns of its record, and with the conversation that `holdout_by` names."""
    extra, column = source.extra(), source.reading.holdout_by
    if row.rejected is None and source.reading.needs == "pairs":
        form = next(iter(source.forms), "single responses")
        raise ValueError(
            f"{source.place} holds {form}, but loss={source.reading.loss} learns from pairs of responses; "
            "use loss=sft, or give pairs"
        )
    if column is None:
        return replace(row, extra=extra) if extra.names else row
    value = extra.get(column) or row.column(column)
    if value is None:
        names = ", ".join(("prompt", "chosen", "rejected", "group", *extra.names))
        raise ValueError(f"{source.place}: holdout_by={column} names no column of the record, which has {names}")
    return replace(row, extra=extra, conversation=value or " ")


def _reasons(skipped: dict[str, int]) -> str:
    reasons = ", ".join(f"{count} x {reason}" for reason, count in skipped.items())
    return f"(skipped: {reasons or 'nothing'})"
