"""Preference rows from the Hugging Face hub, the user's files or code: one decorated function per data set.

A data set is added by writing one function here that turns its records into rows, under `@dataset("name")`.
"""

import difflib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

from fed.data.dialogues import dialogues
from fed.data.html import text_of_html
from fed.data.records import Source
from fed.data.rows import ASSISTANT, HUMAN, Loaded, Preference, Skip, split_by_conversation

SplitName = Literal["train", "test"]


def load(
    names: Sequence[str],
    split: SplitName,
    *,
    data_dir: str | None,
    seed: int,
    cache_dir: str | None = None,
    test_fraction: float | None = None,
) -> Loaded:
    """Rows of all named data sets, one after the other.

    A folder lacking train or test files is divided by conversation, as is a single file; what it makes no rows of is
    counted in the train split only. Test files of the data's own may repeat conversations of the train files.

    Args:
        names: Data sets of this file, e.g. ["hh", "shp"].
        split: "train" or "test".
        data_dir: A .jsonl or .jsonl.gz file, a folder of such files, or a folder with one folder per data set;
            None: the hub.
        seed: Decides that division and the demo's text.
        test_fraction: Share to test on of data that says nothing of train and test; None: the data set's own.
        cache_dir: Where the hub's downloads are kept; None: the default of `datasets`.

    Raises:
        ValueError: If a name is unknown, a file cannot be read or a line is no record, or nothing is left.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected train or test")
    _check_names(names)
    sources = [
        Source(
            name, split, _path(name, names, data_dir), seed, cache_dir, test_fraction or known.test_share, known.parts
        )
        for name, known in ((name, DATASETS[name]) for name in names)
    ]
    parts = [_read(source) for source in sources]
    rows = [row for part in parts for row in part.rows]
    skipped = sum((Counter(part.skipped) for part in parts), Counter())
    if not rows:
        found = ", ".join(f"{count} x {reason}" for reason, count in skipped.items()) or "nothing"
        raise ValueError(f"the {split} split of {', '.join(names)} has no rows (skipped: {found}); check {data_dir=}")
    return Loaded(rows, dict(skipped))


def load_file(path: str, name: str = "jsonl") -> Loaded:
    """All rows of one client's own file, whatever its name says of train and test.

    Args:
        path: A .jsonl or .jsonl.gz file.
        name: The data set whose format it has.

    Raises:
        ValueError: If there is no such file or format, a line is no record, or nothing is left.
    """
    _check_names([name])
    if name == "demo":
        raise ValueError("data set 'demo' is made in code and has no files; give the format of the file, e.g. jsonl")
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}; give a .jsonl or .jsonl.gz file")
    found = _all(Source(name, "train", Path(path), seed=0, cache_dir=None, test_share=0.0))
    if not found.rows:
        skipped = ", ".join(f"{count} x {reason}" for reason, count in found.skipped.items()) or "nothing"
        raise ValueError(f"{path} has no pairs (skipped: {skipped})")
    return found


Rows = Callable[[Source], Iterator[Preference | Skip]]


class DataSet(NamedTuple):
    """A function that yields the rows of a source, and what the source must know."""

    rows: Rows
    test_share: float  # where the data has no test split
    parts: Sequence[str] | None  # None: all that are there


DATASETS: dict[str, DataSet] = {}


def dataset(name: str, test_share: float = 0.1, parts: Sequence[str] | None = None) -> Callable[[Rows], Rows]:
    """Register the function below as data set `name`, of which only `parts` are read."""

    def register(rows: Rows) -> Rows:
        DATASETS[name] = DataSet(rows, test_share, parts)
        return rows

    return register


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not names:
        raise ValueError(f"datasets={names!r}; expected a list of {', '.join(DATASETS)}, e.g. datasets=[hh]")
    for name in names:
        if name not in DATASETS:
            near = difflib.get_close_matches(name, DATASETS, n=1, cutoff=0)
            raise ValueError(f"no data set {name!r}; load_data.py has {', '.join(DATASETS)} (nearest: {near[0]})")
    if len(set(names)) < len(names):
        raise ValueError(f"datasets={list(names)} names a data set twice; name each once")


def _path(name: str, names: Sequence[str], data_dir: str | None) -> Path | None:
    """The file or folder that holds data set `name`."""
    if data_dir is None or name == "demo":
        return None
    if os.path.isdir(os.path.join(data_dir, name)):
        return Path(data_dir, name)
    if len(set(names) - {"demo"}) > 1:
        raise ValueError(f"{data_dir} has no folder {name!r}; several datasets need one folder each in data_dir")
    return Path(data_dir)


def _read(source: Source) -> Loaded:
    """One split of one data set."""
    found = _all(source)
    if source.undivided:
        train, test = split_by_conversation(found.rows, 1 - source.test_share, source.seed)
        return Loaded(train, found.skipped) if source.split == "train" else Loaded(test, {})
    return found


def _all(source: Source) -> Loaded:
    read = list(DATASETS[source.name].rows(source))
    rows = [item for item in read if isinstance(item, Preference)]
    return Loaded(rows, Counter(item.reason for item in read if isinstance(item, Skip)))


def _pair(pair: Preference) -> Preference | Skip:
    """The pair, unless nothing can be learned from it."""
    if not pair.chosen.strip() or not pair.rejected.strip():
        return Skip("empty response")
    if pair.chosen == pair.rejected:
        return Skip("chosen equals rejected")
    return pair


HH_BASE = ("harmless-base", "helpful-base")
HH_PARTS = (*HH_BASE, "helpful-online", "helpful-rejection-sampled")


@dataset("hh_base", parts=HH_BASE)
@dataset("hh")
def hh(source: Source) -> Iterator[Preference | Skip]:
    """Anthropic's helpful and harmless dialogues; the prompt is what both share, up to its last "Assistant:".

    `hh_base` are those with Anthropic's first models only: helpful ones and harmless ones, told apart by their group.
    """
    for record in source.records("Anthropic/hh-rlhf", source.parts or HH_PARTS):
        chosen, rejected = record.text("chosen"), record.text("rejected")
        prompt = _common_prompt(chosen, rejected)
        responses = chosen[len(prompt) :], rejected[len(prompt) :]
        if not prompt:
            yield Skip("no assistant turn in common")
        elif any(turn in response for turn in (HUMAN, ASSISTANT) for response in responses):
            yield Skip("response holds a further turn")
        else:
            yield _pair(Preference(prompt, *responses, group=record.part))


def _common_prompt(chosen: str, rejected: str) -> str:
    """The longest common start that ends in "Assistant:", or ""."""
    end = 0
    while (marker := chosen.find(ASSISTANT, end)) >= 0:
        turn = chosen[end : marker + len(ASSISTANT)]
        if not rejected.startswith(turn, end):
            break
        end += len(turn)
    return chosen[:end]


@dataset("shp")
def shp(source: Source) -> Iterator[Preference | Skip]:
    """Stanford Human Preferences: Reddit comments, one voted at least twice as high as the other."""
    for record in source.records("stanfordnlp/SHP"):
        prompt = f"{HUMAN} {record.text('history')}{ASSISTANT}"
        chosen, rejected = " " + record.text("human_ref_A"), " " + record.text("human_ref_B")
        if record.number("labels") != 1:
            chosen, rejected = rejected, chosen
        # The published field names the subreddit and the split, e.g. askbaking_train.
        domain = re.sub("_(train|validation|test)$", "", record.text("domain"))
        if not record.number("score_ratio") >= 2:
            yield Skip("score_ratio below 2")
        else:
            yield _pair(Preference(prompt, chosen, rejected, group=domain, truncation="keep_start"))


MOST_ANSWERS = 1000  # half a million pairs of one question; a damaged record could ask for any number


@dataset("se", test_share=0.01)
def se(source: Source) -> Iterator[Preference | Skip]:
    """Stack Exchange: all pairs of a question's answers; of two with the same score the later is preferred."""
    for record in source.records("HuggingFaceH4/stack-exchange-preferences", has_test=False):
        question = record.text("question")
        answers = [(answer.number("pm_score"), answer.text("text")) for answer in record.records("answers")]
        if len(answers) > MOST_ANSWERS:
            yield Skip(f"more than {MOST_ANSWERS} answers")
            continue
        try:
            prompt = f"{HUMAN} {text_of_html(question)}{ASSISTANT}"
            answers = [(score, " " + text_of_html(text)) for score, text in answers]
        except ValueError:
            yield Skip("malformed html")
            continue
        for (score, earlier), (later_score, later) in combinations(answers, 2):
            chosen, rejected = (earlier, later) if score > later_score else (later, earlier)
            yield _pair(Preference(prompt, chosen, rejected, group="stack-exchange", truncation="keep_start"))


@dataset("jsonl")
def jsonl(source: Source) -> Iterator[Preference | Skip]:
    """The user's own {"prompt", "chosen", "rejected"[, "group"]}, exactly as written; by default group is the file."""
    for record in source.records(hub=None):
        group = record.text("group") if "group" in record.fields else record.part
        yield _pair(Preference(record.text("prompt"), record.text("chosen"), record.text("rejected"), group=group))


@dataset("demo")
def demo(source: Source) -> Iterator[Preference | Skip]:
    """Kind answers preferred to rude ones, made from the seed."""
    train, test = dialogues(source.seed)
    for dialogue in train if source.split == "train" else test:
        prompt = f"{HUMAN} {dialogue.question}{ASSISTANT}"
        yield Preference(prompt, dialogue.kind, dialogue.rude, group=dialogue.topic)
