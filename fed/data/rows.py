"""Preference pairs as rows, and the conversations to which they belong."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal, NamedTuple

from fed.config.explain import counted

SplitName = Literal["train", "validation", "test"]

HUMAN = "\n\nHuman:"
ASSISTANT = "\n\nAssistant:"
ROLES = ("system", "user", "assistant", "tool")  # of turns, as chat templates know them
MANY_ROWS = 10  # of one conversation, on average: perhaps a system text stands as the first turn of several


class Turn(NamedTuple):
    """One message of a conversation, as chat templates read it."""

    role: str  # "system", "user", "assistant" or "tool"; a template may know others
    content: str
    more: str = ""  # the message's other fields that templates read, such as tool_calls: a JSON object; "": none


class Chat(NamedTuple):
    """A prompt that is a conversation: the tokenizer's chat template turns it into text."""

    turns: tuple[Turn, ...]
    tools: str = ""  # the tools that the assistant may call: a JSON list; "": none


Prompt = str | Chat
Response = str | Turn  # a Turn where the prompt is a Chat


class Extra(NamedTuple):
    """The columns of a record beside its pair."""

    names: tuple[str, ...] = ()
    values: tuple[str, ...] = ()

    def get(self, name: str) -> str | None:
        """Return the value of a column; None if the record has none."""
        return self.values[self.names.index(name)] if name in self.names else None


NO_EXTRA = Extra()


@dataclass(frozen=True, slots=True)
class Preference:
    """One pair: the human preferred `chosen` to `rejected` as the answer to `prompt`.

    Text is trained as it is written; conversations go through the tokenizer's chat template.
    """

    prompt: Prompt  # text: up to and including the last turn marker
    chosen: Response
    rejected: Response | None  # None: a response to imitate, with none to avoid, for loss=sft
    group: str = ""  # topic or source, by which partition=dirichlet and partition=group divide
    truncation: str = "keep_end"  # the end of a too long prompt that survives: keep_end or keep_start
    conversation: str = ""  # rows that share it are never split apart; "": the prompt's first human turn
    extra: Extra = NO_EXTRA

    def __post_init__(self) -> None:
        if self.truncation not in ("keep_end", "keep_start"):
            raise ValueError(f"truncation is {self.truncation!r}; expected keep_end or keep_start")
        if not self.conversation:
            object.__setattr__(self, "conversation", first_human_turn(self.prompt))

    def column(self, name: str) -> str | None:
        """Return the value of a column by its name: one of the pair's own, or of `extra`; None if there is none."""
        own = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected, "group": self.group}
        found = own.get(name)
        if isinstance(found, Chat):
            return "\n".join(turn.content for turn in found.turns)
        return self.extra.get(name) if found is None else said(found)


@dataclass(frozen=True, slots=True)
class Skip:
    """A record that makes no pair, and why."""

    reason: str


@dataclass(frozen=True)
class Loaded:
    """The rows of a split, and how many records made none, by reason."""

    rows: list[Preference]
    skipped: dict[str, int]
    unread: tuple[str, ...] = ()  # fields of the records that nothing reads, and no row keeps
    forms: tuple[str, ...] = ()  # what the records were taken for, where that had to be recognised
    remarks: tuple[str, ...] = ()  # on the files


def merged(parts: Sequence[Loaded]) -> Loaded:
    """Return the rows of all parts, one after the other, with their counts summed up."""
    skipped = sum((Counter(part.skipped) for part in parts), Counter[str]())
    unread = sorted({name for part in parts for name in part.unread})
    forms = dict.fromkeys(form for part in parts for form in part.forms)
    remarks = dict.fromkeys(remark for part in parts for remark in part.remarks)
    rows = [row for part in parts for row in part.rows]
    return Loaded(rows, dict(skipped), tuple(unread), tuple(forms), tuple(remarks))


def in_conversations(rows: Sequence[Preference]) -> str:
    """Return how many pairs there are, of how many conversations: "70 pairs in 2 conversations"."""
    return f"{counted(len(rows), 'pair')} in {counted(len({row.conversation for row in rows}), 'conversation')}"


def unknown_roles(rows: Sequence[Preference]) -> list[str]:
    """Return the roles of turns that chat templates do not know, sorted."""
    chats = [row.prompt for row in rows if isinstance(row.prompt, Chat)]
    return sorted({turn.role for chat in chats for turn in chat.turns} - {*ROLES})


def roles_without_user(rows: Sequence[Preference]) -> list[str]:
    """Return the roles of the turns if all rows are conversations without a turn of a user, else []."""
    roles = {turn.role for row in rows if isinstance(row.prompt, Chat) for turn in row.prompt.turns}
    return [] if "user" in roles or any(isinstance(row.prompt, str) for row in rows) else sorted(roles)


def said(response: Response) -> str:
    """Return what a response says; of one that calls tools, also the calls."""
    return response if isinstance(response, str) else response.content + response.more


def usable(pair: Preference) -> Preference | Skip:
    """Return the pair, or the reason why nothing can be learned from it."""
    if not (pair.prompt if isinstance(pair.prompt, str) else any(said(turn) for turn in pair.prompt.turns)):
        return Skip("empty prompt")
    if not said(pair.chosen).strip() or (pair.rejected is not None and not said(pair.rejected).strip()):
        return Skip("empty response")
    if pair.chosen == pair.rejected:
        return Skip("chosen equals rejected")
    return pair


def first_human_turn(prompt: Prompt) -> str:
    """Return what the human said first; without a human's marker, the text before the first answer."""
    if isinstance(prompt, Chat):
        return next((turn.content for turn in prompt.turns if turn.role == "user"), "").strip()
    before_answer = prompt.split(ASSISTANT, 1)[0]
    _, marker, after = before_answer.partition(HUMAN)
    return (after.split(HUMAN, 1)[0] if marker else before_answer).strip()


def told_apart(rows: Sequence[Preference]) -> list[Preference]:
    """Return the rows with their conversations told apart by later turns, if all begin with the same human turns.

    A system text that stands as the first turn of every dialogue says nothing about the conversation. Rows whose
    conversation was given, and rows that are the same to their last turn, stay as they are.
    """
    same = {row.conversation for row in rows}
    if len(same) != 1 or any(row.conversation != first_human_turn(row.prompt) for row in rows):
        return list(rows)
    beginnings = [list(_beginnings(row.prompt)) for row in rows]
    for depth in range(2, max(map(len, beginnings)) + 1):
        starts = [each[:depth][-1] for each in beginnings]
        if len({*starts}) > 1:
            return [replace(row, conversation=start) for row, start in zip(rows, starts, strict=True)]
    return list(rows)


def are_few_conversations(rows: Sequence[Preference]) -> bool:
    """Return True if first human turns make so few conversations of many rows that they may tell little about them."""
    by_turn = {row.conversation for row in rows}
    if len(by_turn) * MANY_ROWS > len(rows):
        return False
    return all(row.conversation == first_human_turn(row.prompt) for row in rows)


def _beginnings(prompt: Prompt) -> Iterator[str]:
    """Yield the beginning of a dialogue up to each of its human turns, without the answer to that."""
    if isinstance(prompt, Chat):
        places = [place for place, turn in enumerate(prompt.turns) if turn.role == "user"] or [len(prompt.turns) - 1]
        for place in places:
            yield "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt.turns[: place + 1])
        return
    parts = prompt.split(HUMAN)  # what stands before the first marker is no turn
    for depth in range(min(2, len(parts)), len(parts) + 1):
        yield HUMAN.join([*parts[: depth - 1], parts[depth - 1].split(ASSISTANT, 1)[0]]).strip()


def split_by_conversation(
    rows: Sequence[Preference], fraction: float, seed: int | None
) -> tuple[list[Preference], list[Preference]]:
    """Draw whole conversations, as near to `fraction` of the rows as they allow; return their rows and the others.

    Both lists keep the order of `rows`, which does not influence the draw. Without a seed the last conversations are
    taken, in the order of their first rows. With two conversations or more and 0 < fraction < 1 neither list is empty.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction is {fraction}; expected a number from 0 to 1")
    sizes = Counter(row.conversation for row in rows)
    if seed is None:
        keys = [*sizes][::-1]
    else:
        keys = sorted(sizes)
        random.Random(seed).shuffle(keys)
    totals = [0, *accumulate(sizes[key] for key in keys)]
    cut = min(range(len(totals)), key=lambda count: abs(totals[count] - fraction * len(rows)))
    if 0 < fraction < 1 and len(keys) > 1:
        cut = min(max(cut, 1), len(keys) - 1)
    first = set(keys[:cut])
    return [row for row in rows if row.conversation in first], [row for row in rows if row.conversation not in first]
