"""Pairs of responses from files of them, and their judgements as records of data that train as they are."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from typing import Any, Literal, NamedTuple

from fed.data.rows import Preference, said
from feedback.asking import as_json, columns_of
from feedback.job_files import JobFile
from feedback.judging import Judge, Judgement, Pair, as_text

PREFERENCES = {"a": 1, "b": 2, "tie": 1.5, None: None}  # as AlpacaEval writes them
NAMES = ("generator", "index", "draw", "tokens", "finish_reason")  # columns of a response, not of its prompt


class Two(NamedTuple):
    """A pair to judge, and where its responses come from."""

    pair: Pair
    generators: tuple[str, str]


@dataclass(frozen=True)
class Matched:
    """The pairs of some files, and what is left over."""

    pairs: Sequence[Two]
    alone: int  # prompts without a second response
    same: int  # pairs of equal responses

    def digest(self) -> str:
        """Return a hash of all pairs."""
        content = [(as_json(two.pair.row), two.pair.a, two.pair.b, two.generators) for two in self.pairs]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def pairs_of(files: Sequence[Sequence[Preference]], which: Literal["first", "all"]) -> Matched:
    """Return the pairs of responses that files hold.

    A file of pairs gives its own, the preferred response as a. Of one file of responses, those to one prompt are
    compared: the first two, or all. Of two files, response number k of one with number k of the other, a from the first
    file; `which` says whether only the first ones are.

    Args:
        files: The rows of each file.
        which: "first" or "all".

    Raises:
        ValueError: If there are more than two files, or two of which one holds pairs.
    """
    holds_pairs = [any(row.rejected is not None for row in rows) for rows in files]
    if len(files) == 1 and holds_pairs[0]:
        whole = [(row, row.rejected) for row in files[0] if row.rejected is not None]
        found = [_two(row, said(row.chosen), said(rejected), ("chosen", "rejected")) for row, rejected in whole]
        return _without_same(found, len(files[0]) - len(whole))
    if len(files) > 2 or any(holds_pairs):
        raise ValueError("expected one file of responses, two of them, or one file of pairs")
    groups = [_by_prompt(rows) for rows in files]
    if len(groups) == 1:
        return _of_one(groups[0], which)
    first, second = groups
    found, alone = [], len(first.keys() ^ second.keys())
    for prompt, rows in first.items():
        both = _side_by_side(rows, second.get(prompt, ()))
        found += [_of_rows(one, other) for one, other in (both[:1] if which == "first" else both)]
    return _without_same(found, alone)


def _side_by_side(rows: Sequence[Preference], others: Sequence[Preference]) -> list[tuple[Preference, Preference]]:
    """Return the responses of two files to one prompt: those of one draw where they tell it, else in their order."""
    by_draw = {row.extra.get("draw"): row for row in others}
    if None in by_draw or any(row.extra.get("draw") is None for row in rows):
        return list(zip(rows, others, strict=False))
    return [(row, by_draw[draw]) for row in rows if (draw := row.extra.get("draw")) in by_draw]


def _of_one(groups: Mapping[Any, Sequence[Preference]], which: Literal["first", "all"]) -> Matched:
    found, alone = [], 0
    for rows in groups.values():
        alone += len(rows) < 2
        chosen = list(combinations(rows, 2))
        found += [_of_rows(one, other) for one, other in (chosen[:1] if which == "first" else chosen)]
    return _without_same(found, alone)


def _by_prompt(rows: Sequence[Preference]) -> dict[Any, list[Preference]]:
    found: dict[Any, list[Preference]] = {}
    for row in rows:
        found.setdefault(as_text(row.prompt), []).append(row)
    return found


def _of_rows(one: Preference, other: Preference) -> Two:
    generators = (one.extra.get("generator") or "", other.extra.get("generator") or "")
    return _two(one, said(one.chosen), said(other.chosen), generators)


def _two(row: Preference, a: str, b: str, generators: tuple[str, str]) -> Two:
    return Two(Pair(row, a, b), generators)


def _without_same(found: Sequence[Two], alone: int) -> Matched:
    kept = [two for two in found if two.pair.a.strip() != two.pair.b.strip()]
    return Matched(kept, alone, len(found) - len(kept))


def judge_pairs(
    judge: Judge, pairs: Sequence[Two], file: JobFile, on_done: Callable[[int], None] = lambda done: None
) -> None:
    """Judge the pairs that `file` does not have yet.

    Args:
        judge: Who judges.
        pairs: The pairs.
        file: Gets a line for each judgement, see `record`.
        on_done: Is told how many judgements are there.

    Raises:
        CannotContinue: If the judge cannot be asked any more; judgements that were there are in the file.
    """
    done = file.done
    left = [(number, two) for number, two in enumerate(pairs) if number not in done]

    def write(place: int, judgement: Judgement) -> None:
        number, two = left[place]
        file.add([record(number, two, judgement, judge)])
        on_done(len(file.lines))

    judge.judge([two.pair for _, two in left], write)


def record(number: int, two: Two, judgement: Judgement, judge: Judge) -> dict[str, Any]:
    """Return a judgement as a record of data: `winner` is a, b, tie or null, which a run drops and counts."""
    row, found = two.pair.row, judgement
    share = {} if found.share is None else {"share_a": found.share}
    return {
        **{name: value for name, value in columns_of(row).items() if name not in NAMES},
        **as_json(row),
        "response_a": two.pair.a,
        "response_b": two.pair.b,
        "winner": found.winner,
        **share,
        "generator_a": two.generators[0],
        "generator_b": two.generators[1],
        "judge": judge.name,
        "prompt_hash": str(judge.about.get("prompt_hash", "")),
        **{f"raw_{opinion.order}": opinion.raw for opinion in found.opinions},
        **({"problem": found.problem} if found.problem else {}),
        "number": number,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def annotations(lines: Sequence[Mapping[str, Any]], rows: Sequence[Two]) -> Iterator[dict[str, Any]]:
    """Yield judgements in the form of AlpacaEval's annotations.json.

    Args:
        lines: The lines that `judge_pairs` wrote, in order.
        rows: The pairs that were judged.
    """
    for line in lines:
        two = rows[line["number"]]
        yield {
            "instruction": as_text(two.pair.row.prompt),
            "output_1": two.pair.a,
            "output_2": two.pair.b,
            "generator_1": two.generators[0],
            "generator_2": two.generators[1],
            "annotator": line["judge"],
            "preference": PREFERENCES[line["winner"]],
            "raw_completion": json.dumps({name: line[name] for name in ("raw_ab", "raw_ba") if name in line}),
        }
