"""Preference rows from the Hugging Face hub, the user's files or code: one decorated function per data set.

A data set is added by writing one function here that turns its records into rows, under `@dataset("name")`.
"""

import difflib
import gzip
import json
import os
import random
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from itertools import accumulate, combinations
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True, slots=True)
class Preference:
    """One pair: the human preferred `chosen` to `rejected` as the answer to `prompt`."""

    prompt: str
    chosen: str
    rejected: str
    group: str = ""  # topic or source; what partition=dirichlet and partition=group look at
    truncation: str = "keep_end"  # the end of a too long prompt that survives: keep_end or keep_start
    conversation: str = ""  # rows that share it are never split apart; "": the prompt's first human turn

    def __post_init__(self) -> None:
        if self.truncation not in ("keep_end", "keep_start"):
            raise ValueError(f"truncation is {self.truncation!r}; expected keep_end or keep_start")
        if not self.conversation:
            object.__setattr__(self, "conversation", first_human_turn(self.prompt))


@dataclass(frozen=True, slots=True)
class Skip:
    """A record that makes no pair, and why."""

    reason: str


@dataclass(frozen=True)
class Loaded:
    """The rows of a split, and how many records made none, by reason."""

    rows: list[Preference]
    skipped: dict[str, int]


Split = Literal["train", "test"]
Row = TypeVar("Row", bound=Preference)


def load(
    names: Sequence[str], split: Split, *, data_dir: str | None, seed: int, cache_dir: str | None = None
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
        cache_dir: Where the hub's downloads are kept; None: the default of `datasets`.

    Raises:
        ValueError: If a name is unknown, a file cannot be read or a line is no record, or nothing is left.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is {split!r}; expected train or test")
    _check_names(names)
    sources = [Source(name, split, _path(name, names, data_dir), seed, cache_dir) for name in names]
    parts = [_read(source) for source in sources]
    rows = [row for part in parts for row in part.rows]
    skipped = sum((Counter(part.skipped) for part in parts), Counter())
    if not rows:
        found = ", ".join(f"{count} x {reason}" for reason, count in skipped.items()) or "nothing"
        raise ValueError(f"the {split} split of {', '.join(names)} has no rows (skipped: {found}); check {data_dir=}")
    return Loaded(rows, dict(skipped))


def split_by_conversation(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Whole conversations, drawn by `seed`: as near to `fraction` of the rows as they allow, and the others.

    Both lists keep the order of `rows`, which does not influence the draw. With two conversations or more and
    0 < fraction < 1 neither is empty.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; expected a number from 0 to 1")
    sizes = Counter(row.conversation for row in rows)
    keys = sorted(sizes)
    random.Random(seed).shuffle(keys)
    totals = [0, *accumulate(sizes[key] for key in keys)]
    cut = min(range(len(totals)), key=lambda count: abs(totals[count] - fraction * len(rows)))
    if 0 < fraction < 1 and len(keys) > 1:
        cut = min(max(cut, 1), len(keys) - 1)
    first = set(keys[:cut])
    return [row for row in rows if row.conversation in first], [row for row in rows if row.conversation not in first]


def first_human_turn(prompt: str) -> str:
    """What the human said first; the text before the first answer if nothing is marked as the human's."""
    before_answer = prompt.split(ASSISTANT, 1)[0]
    _, marker, after = before_answer.partition(HUMAN)
    return (after.split(HUMAN, 1)[0] if marker else before_answer).strip()


Rows = Callable[["Source"], Iterator[Preference | Skip]]


class DataSet(NamedTuple):
    """A function that yields the rows of a source, and the share to test on where the data has no test split."""

    rows: Rows
    test_share: float


DATASETS: dict[str, DataSet] = {}


def dataset(name: str, test_share: float = 0.1) -> Callable[[Rows], Rows]:
    """Register the function below as data set `name`."""

    def register(rows: Rows) -> Rows:
        DATASETS[name] = DataSet(rows, test_share)
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


def _read(source: "Source") -> Loaded:
    """One split of one data set."""
    read = list(DATASETS[source.name].rows(source))
    rows = [item for item in read if isinstance(item, Preference)]
    skipped = Counter(item.reason for item in read if isinstance(item, Skip))
    if source.undivided:
        train, test = split_by_conversation(rows, 1 - DATASETS[source.name].test_share, source.seed)
        return Loaded(train, skipped) if source.split == "train" else Loaded(test, {})
    return Loaded(rows, skipped)


HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can write it, UTF-8 and so a tokenizer cannot


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a file or one row of the hub; fields are checked when they are asked for."""

    where: str  # "path:line", for messages
    part: str  # the file's name without -train or -test, or the hub's folder
    fields: dict[str, object]

    def text(self, name: str) -> str:
        """A string that can be encoded."""
        value = self._field(name)
        if not isinstance(value, str):
            raise ValueError(f"{self.where}: {name!r} is {type(value).__name__}, expected a string")
        if HALF_CHARACTER.search(value):
            raise ValueError(f"{self.where}: {name!r} holds half of a \\ud800-\\udfff pair, expected whole characters")
        return value

    def number(self, name: str) -> float:
        """An int or a float."""
        value = self._field(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.where}: {name!r} is {type(value).__name__}, expected a number")
        return value

    def records(self, name: str) -> "list[Record]":
        """A list of objects."""
        value = self._field(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise ValueError(f"{self.where}: {name!r} is {type(value).__name__}, expected a list of objects")
        return [Record(self.where, self.part, item) for item in value]

    def _field(self, name: str) -> object:
        if name not in self.fields:
            has = ", ".join(map(repr, list(self.fields)[:8])) or "no field"
            raise ValueError(f"{self.where}: no field {name!r}; the record has {has}")
        return self.fields[name]


@dataclass(frozen=True)
class Source:
    """Where one data set lies and which of its splits is wanted."""

    name: str
    split: str
    path: Path | None  # None: the hub
    seed: int
    cache_dir: str | None

    def records(
        self, hub: str | None, parts: Sequence[str | None] = (None,), has_test: bool = True
    ) -> Iterator[Record]:
        """Records of the wanted split, of all splits if the source is undivided.

        Args:
            hub: Name on the hub, read when there is no path; None: the data set exists in files only.
            parts: Folders of the hub's data set.
            has_test: Whether the hub has a test split; else one is drawn from train.
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
        """Whether the files say nothing of train and test."""
        return self.path is not None and self.files["train"] == self.files["test"]

    @cached_property
    def files(self) -> dict[str, list[Path]]:
        """Files of each split; the same for both if the folder lacks either."""
        assert self.path is not None
        if os.path.isfile(self.path):
            return {"train": [self.path], "test": [self.path]}
        files = _json_lines_files(self.path)
        test = [path for path in files if _named_split(path) == "test"]
        train = [path for path in files if _named_split(path) != "test"]
        return {"train": train, "test": test} if train and test else {"train": files, "test": files}

    def _hub_records(self, hub: str, part: str | None, has_test: bool) -> Iterator[Record]:
        split = self.split if has_test else "train"
        try:
            import datasets  # takes seconds; files need none of it

            table = datasets.load_dataset(hub, data_dir=part, split=split, cache_dir=self.cache_dir)
            if not has_test:
                test_share = DATASETS[self.name].test_share
                table = table.train_test_split(test_size=test_share, seed=self.seed)[self.split]
        except Exception as error:  # hub, disk and parser each have exceptions of their own
            reason = (str(error) or repr(error)).splitlines()[0]
            raise ValueError(f"cannot get {hub} from the hub ({reason}); give data_dir=<folder of .jsonl>") from error
        for index, fields in enumerate(table):
            yield Record(f"{hub}:{index}", part or "", fields)


SPLIT_WORD = re.compile(r"(?<![a-z])(train|test)(?:ing)?(?![a-z])", re.IGNORECASE)


def _json_lines_files(folder: Path) -> list[Path]:
    """The folder's files; if it has none, those named train or test in its folders, as Anthropic lays them out."""
    if not os.path.isdir(folder):
        raise ValueError(f"data_dir={folder} does not exist; give a folder or a .jsonl or .jsonl.gz file")
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


def _named_split(path: Path) -> str | None:
    """The last word train or test in the file's name ("latest" is neither)."""
    words = SPLIT_WORD.findall(path.name)
    return words[-1].lower() if words else None


def _part(path: Path) -> str:
    """harmless-base for harmless-base-test.jsonl.gz and for harmless-base/test.jsonl.gz."""
    stem = SPLIT_WORD.sub("", path.name.removesuffix(".gz").removesuffix(".jsonl")).strip("-_. ")
    return stem or path.parent.name


def _file_records(path: Path, part: str) -> Iterator[Record]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield Record(where, part, _parse(where, line))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with gzip.open(path) if path.name.endswith(".gz") else open(path, "rb") as file:
            yield from file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is no whole gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise ValueError(f"cannot read {path} ({error.strerror or error}); check the file") from error


def _parse(where: str, line: bytes) -> dict[str, object]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); expected one object per line") from error
    if not isinstance(value, dict):
        raise ValueError(f"{where}: the line is {type(value).__name__}, expected an object")
    return value


def _pair(pair: Preference) -> Preference | Skip:
    """The pair, unless nothing can be learned from it."""
    if not pair.chosen.strip() or not pair.rejected.strip():
        return Skip("empty response")
    if pair.chosen == pair.rejected:
        return Skip("chosen equals rejected")
    return pair


HH_PARTS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")


@dataset("hh")
def hh(source: Source) -> Iterator[Preference | Skip]:
    """Anthropic's helpful and harmless dialogues; the prompt is what both share, up to its last "Assistant:"."""
    for record in source.records("Anthropic/hh-rlhf", HH_PARTS):
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
    prompt = chosen
    while prompt:
        before, marker, _ = prompt.rpartition(ASSISTANT)
        if rejected.startswith(before + marker):
            return before + marker
        prompt = before
    return ""


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


@dataset("se", test_share=0.01)
def se(source: Source) -> Iterator[Preference | Skip]:
    """Stack Exchange: all pairs of a question's answers; of two with the same score the later is preferred."""
    for record in source.records("HuggingFaceH4/stack-exchange-preferences", has_test=False):
        question = record.text("question")
        answers = [(answer.number("pm_score"), answer.text("text")) for answer in record.records("answers")]
        try:
            prompt = f"{HUMAN} {text_of_html(question)}{ASSISTANT}"
            answers = [(score, " " + text_of_html(text)) for score, text in answers]
        except (AssertionError, ValueError):  # html.parser refuses some declarations and endless numbers
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


def text_of_html(html: str) -> str:
    """Paragraphs, quotes, list items ("- ") and <code>, without other markup; words of links and emphasis stay."""
    parser = _TextOfHtml()
    parser.feed(html)
    parser.close()
    return parser.text()


class _TextOfHtml(HTMLParser):
    BLOCKS = frozenset(re.findall(r"\w+", "p li ul ol dl dt dd pre blockquote div h1 h2 h3 h4 h5 h6 hr table tr"))
    CODE = frozenset(("pre", "code"))
    HIDDEN = frozenset(("script", "style"))

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks = [""]
        self.code = 0  # depth: <pre><code> is one piece of code
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self._start_block("- " if tag == "li" else "")
        if tag == "br":
            self.blocks[-1] += "\n"
        if tag in self.CODE:
            self.blocks[-1] += "" if self.code else "<code>"
            self.code += 1

    def handle_endtag(self, tag: str) -> None:
        self.hidden -= tag in self.HIDDEN and self.hidden > 0
        if tag in self.CODE and self.code:
            self.code -= 1
            self.blocks[-1] += "" if self.code else "</code>"
        if tag in self.BLOCKS:
            self._start_block("")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.blocks[-1] += data if self.code else re.sub(r"\s+", " ", data)

    def text(self) -> str:
        """All blocks; items of a list on lines of their own, other blocks with an empty line between."""
        self.blocks[-1] += "</code>" if self.code else ""
        text = ""
        for block in filter(None, map(str.strip, self.blocks)):
            in_list = block.startswith("- ") and text.rpartition("\n\n")[2].startswith("- ")
            text += ("\n" if in_list else "\n\n") + block
        return text.strip()

    def _start_block(self, opening: str) -> None:
        if self.code:
            self.blocks[-1] += "\n"
        elif opening or self.blocks[-1].strip() != "-":  # a paragraph inside an item stays on the item's line
            self.blocks.append(opening)


DEMO_TRAIN, DEMO_TEST = 1600, 512

DEMO_TOPICS = {
    "computers": "laptops backups Python email printers routers spreadsheets passwords Linux keyboards robots monitors"
    " websites updates databases hard_disks",
    "cooking": "rice soup bread pasta curry salads sauces baking omelettes pancakes stew pies roasts tacos jam noodles",
    "gardening": "roses tomatoes compost cacti lawns seeds pruning herbs hedges bulbs soil orchids mulch bees ferns"
    " potting",
    "health": "sleep stretching vitamins running posture breathing massage yoga diets fasting tea naps walking cycling"
    " saunas swimming",
    "music": "guitars scales jazz singing drums violins chords rhythm pianos choirs harmony flutes opera recording"
    " sheet_music ukuleles",
    "travel": "visas maps trains hostels flights packing camping ferries hotels passports deserts tours luggage cruises"
    " road_trips buses",
}
DEMO_OPENINGS = ("", "Hello. ", "Please, ", "Hi, ", "Excuse me: ", "One question: ")
DEMO_QUESTIONS = (
    "how do I start with {}?",
    "what is new about {}?",
    "what should I know of {}?",
    "can you help me with {}?",
    "any advice on {}?",
    "is there a trick to {}?",
    "who can teach me {}?",
    "why do I fail with {}?",
)
DEMO_REPLIES = ("", "Well, ", "Yes, ", "No, ", "Look, ", "Honestly, ", "Good question. ")
# Both kinds use much the same words, so that their order must be learned: "not hard" and "too hard", "do" and "do not".
DEMO_ANSWERS = {
    "kind": (
        (*DEMO_REPLIES, "Gladly. ", "Happy to help. "),
        (
            "you will soon enjoy {}.",
            "{} will not be hard for you.",
            "it is not too late for {}.",
            "I can explain {} to you.",
            "do not give up on {}.",
            "nobody fails with {} for long.",
            "your {} can only get better.",
            "a friend will help with {}.",
            "let us look at {} together.",
            "you need no talent for {}.",
            "do ask me about {} any time.",
            "a start with {} is worth it.",
        ),
    ),
    "rude": (
        (*DEMO_REPLIES, "Whatever. ", "Not my job. "),
        (
            "you will never enjoy {}.",
            "{} will be too hard for you.",
            "it is too late for you and {}.",
            "I can not explain {} to you.",
            "do give up on {}.",
            "nobody gets better with {}.",
            "your {} can only fail.",
            "a friend will not help with {}.",
            "look at {} on your own.",
            "you have no talent for {}.",
            "do not ask me about {}.",
            "a start with {} is not worth it.",
        ),
    ),
}


@dataset("demo")
def demo(source: Source) -> Iterator[Preference | Skip]:
    """Kind answers preferred to rude ones on six topics; many words occur in both, and neither kind is longer."""
    rng = random.Random(source.seed)
    prompts = [
        (topic, thing.replace("_", " "), opening + question)
        for topic, things in DEMO_TOPICS.items()
        for thing in things.split()
        for opening in DEMO_OPENINGS
        for question in DEMO_QUESTIONS
    ]
    drawn = rng.sample(prompts, DEMO_TRAIN + DEMO_TEST)
    rows = [_demo_pair(topic, thing, question, rng) for topic, thing, question in drawn]
    yield from rows[:DEMO_TRAIN] if source.split == "train" else rows[DEMO_TRAIN:]


def _demo_pair(topic: str, thing: str, question: str, rng: random.Random) -> Preference:
    prompt = f"{HUMAN} {_capitals(question.format(thing))}{ASSISTANT}"
    return Preference(prompt, _demo_answer("kind", thing, rng), _demo_answer("rude", thing, rng), group=topic)


def _demo_answer(manner: str, thing: str, rng: random.Random) -> str:
    openings, sentences = DEMO_ANSWERS[manner]
    return " " + _capitals(rng.choice(openings) + rng.choice(sentences).format(thing))


def _capitals(text: str) -> str:
    return re.sub(r"(^|[.!] )([a-z])", lambda match: match[1] + match[2].upper(), text)
