"""One preference pair as a row, and the split of rows by conversation."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

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


Row = TypeVar("Row", bound=Preference)


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
