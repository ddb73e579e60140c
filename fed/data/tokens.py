"""Rows as token ids, truncated to what the model reads."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from fed.data.chat import ONLY_IDS, ChatSettings, ChatTokens, PairIds, in_form, without_oldest
from fed.data.examples import Example, Examples
from fed.data.rows import Chat, Preference, Skip, said

NO_TOOLS = "chat_template=none has no place for tools: they are left out"
PART = 4096  # rows that are texts and lists of ids at a time
THREADS = "TOKENIZERS_PARALLELISM"  # read by the library at every call; fed/__init__.py sets it to false
# Texts before a response, behind which tokenizers write no space of their own; the second if the first melts into it.
BEFORE = ("\n", "=", ")", "x")


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that is used here."""

    eos_token_id: int

    def __call__(self, text: list[str], **kwargs: object) -> dict[str, list[list[int]]]:
        """Return token ids under the key "input_ids"."""

    def decode(self, token_ids: Sequence[int], **kwargs: object) -> str:
        """Return the text of token ids."""


@dataclass(frozen=True)
class Lengths:
    """The lengths that a model reads of a pair; the names are those of the keys."""

    max_length: int
    max_prompt_length: int
    truncation: str | None = None  # None: what the row says

    def __post_init__(self) -> None:
        if not 1 <= self.max_prompt_length < self.max_length:
            raise ValueError(
                f"max_prompt_length={self.max_prompt_length} must be at least 1 and below "
                f"max_length={self.max_length}: the rest is for the response"
            )


@dataclass
class Cuts:
    """The counts of what rows lost on their way to token ids.

    Attributes:
        pairs: Pairs that were too long and lost tokens.
        tokens: Tokens that they lost.
        dropped: Rows that made no pair, by reason.
        remarks: What the chat template does otherwise than most, and in how many pairs.
    """

    pairs: int = 0
    tokens: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    remarks: Counter[str] = field(default_factory=Counter)

    def add(self, other: "Cuts") -> None:
        """Add the counts of other rows."""
        self.pairs += other.pairs
        self.tokens += other.tokens
        self.dropped += other.dropped
        self.remarks += other.remarks


class Tokenized(NamedTuple):
    """The pairs of some rows, and what was cut and dropped."""

    examples: Examples
    kept: np.ndarray  # of each row, whether it has an example, shape (rows,)
    cuts: Cuts

    def part(self, start: int, stop: int) -> Examples:
        """Return the examples of rows `start` to `stop - 1`."""
        return self.examples.part(int(self.kept[:start].sum()), int(self.kept[:stop].sum()))


def tokenize(
    rows: Sequence[Preference],
    tokenizer: Any,
    *,
    lengths: Lengths,
    chat: ChatSettings | None = None,
    on_rows: Callable[[int], None] = lambda done: None,
) -> Tokenized:
    """Turn rows into token ids, truncated as the original DPO code does, except that a response keeps its end.

    Conversations go through the tokenizer's chat template, see `fed.data.chat`. Text is used as it is written: no
    special token is recognised in it, prompt and response decode to what was written, the prompt begins with the
    begin-of-text token if the tokenizer begins every text with one, and responses end in end-of-text.

    When prompt plus longer response exceed `max_length`, the prompt is cut to `max_prompt_length` at the end its row
    names; if that is not enough, responses are cut to `max_length - max_prompt_length` tokens, the last of which stays
    the one that ends the turn. Pairs whose responses are then the same, or hold nothing but that token, are dropped.

    Args:
        rows: The rows.
        tokenizer: A tokenizer of transformers.
        lengths: What the model reads of a pair.
        chat: How conversations become text; None: by the tokenizer's own template.
        on_rows: Called with how many rows are done, every `PART` rows.

    Raises:
        ValueError: If a prompt has no token, or conversations meet a tokenizer without a chat template.
    """
    chat, cuts, kept = chat or ChatSettings(), Cuts(), np.zeros(len(rows), dtype=bool)
    parts = []
    with _in_threads(len(rows) >= PART):
        for start in range(0, len(rows), PART):
            part = _in_form(rows[start : start + PART], chat, cuts)
            found = list(_all_ids(part, tokenizer, chat, lengths, cuts))
            kept[start : start + len(found)] = [example is not None for example in found]
            parts.append(Examples.of(example for example in found if example is not None))
            on_rows(start + len(found))
    return Tokenized(Examples.joined(parts), kept, cuts)


def _in_form(rows: Sequence[Preference], chat: ChatSettings, cuts: Cuts) -> list[Preference]:
    """Return the rows as the settings want them, and count what these leave out."""
    if chat.chat_template == "none":
        without = sum(isinstance(row.prompt, Chat) and bool(row.prompt.tools) for row in rows)
        cuts.remarks += Counter({NO_TOOLS: without} if without else {})
    return [in_form(row, chat) for row in rows]


@contextmanager
def _in_threads(many: bool) -> Iterator[None]:
    """Let the library use all cores inside the context if there are many texts."""
    before = os.environ.get(THREADS)
    if many:
        os.environ[THREADS] = "true"
    try:
        yield
    finally:
        if many and before is not None:
            os.environ[THREADS] = before


def _all_ids(
    rows: Sequence[Preference], tokenizer: Any, chat: ChatSettings, lengths: Lengths, cuts: Cuts
) -> Iterator[Example | None]:
    """Yield the example of each row, None if it makes none, and count what happens to them."""
    plain = iter(_plain_ids([row for row in rows if isinstance(row.prompt, str)], tokenizer, cuts))
    conversations = [row for row in rows if isinstance(row.prompt, Chat)]
    template = ChatTokens(tokenizer, chat.chat_template_kwargs) if conversations else None
    chats = iter(template.pairs(conversations) if template else ())
    begins: dict[bool, list[int]] = {
        False: begin_of_text(tokenizer) if rows else [],
        True: [getattr(tokenizer, "bos_token_id", None)],  # type: ignore[list-item]  # None begins nothing
    }
    for row in rows:
        pair = next(plain) if isinstance(row.prompt, str) else next(chats)
        if isinstance(pair, PairIds) and template and lengths.truncation == "messages":
            pair = _with_fewer_turns(row, pair, template, lengths, cuts)
        if isinstance(pair, Skip):
            cuts.dropped[pair.reason] += 1
            yield None
            continue
        if template and isinstance(row.prompt, Chat):
            _remark(pair, template, cuts)
        keep = lengths.truncation if lengths.truncation in ("keep_start", "keep_end") else row.truncation
        example = truncate(pair, keep or row.truncation, lengths, begin=begins[isinstance(row.prompt, Chat)])
        _count(pair, example, cuts)
        if example.chosen == example.rejected:
            cuts.dropped["both responses equal once they are cut"] += 1
            yield None
        elif min(len(side) for side in (example.chosen, example.rejected or example.chosen)) < 2:
            cuts.dropped["a response cut to nothing"] += 1
            yield None
        else:
            yield example


def _remark(pair: PairIds, template: ChatTokens, cuts: Cuts) -> None:
    if not template.ends_in:
        cuts.remarks["the chat template ends no turn with a special token: end-of-text is added"] += 1
    if pair.remark:
        cuts.remarks[pair.remark] += 1


def _count(pair: PairIds, example: Example, cuts: Cuts) -> None:
    before = len(pair.prompt) + len(pair.chosen) + len(pair.rejected or ())
    lost = before - len(example.prompt) - len(example.chosen) - len(example.rejected)
    cuts.pairs += lost > 0
    cuts.tokens += lost


def _with_fewer_turns(
    row: Preference, pair: PairIds, template: ChatTokens, lengths: Lengths, cuts: Cuts
) -> PairIds | Skip:
    """Leave out the oldest turns of a conversation until it fits, or one is left."""
    found: PairIds | Skip = pair
    while isinstance(found, PairIds) and _is_too_long(found, lengths):
        assert isinstance(row.prompt, Chat)
        shorter = without_oldest(row.prompt)
        if shorter is None:
            break
        row = replace(row, prompt=shorter)
        found = next(template.pairs([row]))
    if isinstance(found, PairIds) and found is not pair:
        lost = len(pair.prompt) - len(found.prompt)
        cuts.pairs, cuts.tokens = cuts.pairs + (lost > 0 and not _is_too_long(found, lengths)), cuts.tokens + lost
    return found


def _is_too_long(pair: PairIds, lengths: Lengths) -> bool:
    return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected or ())) > lengths.max_length


def _plain_ids(rows: Sequence[Preference], tokenizer: Any, cuts: Cuts) -> Iterator[PairIds]:
    """Yield the ids of rows of text."""
    if not rows:
        return
    begin, end = begin_of_text(tokenizer), tokenizer.eos_token_id
    prompts = text_ids([str(row.prompt) for row in rows], tokenizer)
    responses = [[said(one) for one in (row.chosen, row.rejected) if one is not None] for row in rows]
    answers = iter(_response_ids([text for each in responses for text in each], tokenizer, cuts))
    for row, prompt, texts in zip(rows, prompts, responses, strict=True):
        if not (prompt or begin):
            raise ValueError(
                f"the prompt {row.prompt!r} has no tokens in this tokenizer, so nothing predicts its responses' first "
                f"token (chosen: {texts[0][:40]!r}); drop the row or give it a prompt"
            )
        found = [[*next(answers), end] for _ in texts]
        yield PairIds([*begin, *prompt], found[0], found[1] if len(found) > 1 else None)


def text_ids(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the token ids of texts as they are written: none of them is read as a special token."""
    if not texts:
        return []
    how = ONLY_IDS if hasattr(tokenizer, "backend_tokenizer") else {}
    found: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, **how)[
        "input_ids"
    ]
    return found


def begin_of_text(tokenizer: Any) -> list[int]:
    """Return the special tokens with which the tokenizer begins every text; most begin with none."""
    if not hasattr(tokenizer, "all_special_ids"):
        return []
    whole, own = (list(tokenizer("x", add_special_tokens=added)["input_ids"]) for added in (True, False))
    places = (place for place in range(len(whole)) if whole[place : place + len(own)] == own)
    return whole[: next(places, 0)]


def _response_ids(texts: Sequence[str], tokenizer: Any, cuts: Cuts) -> list[list[int]]:
    """Return the ids of responses as they follow a prompt: without a space that nobody wrote."""
    found = text_ids(texts, tokenizer)
    if not writes_spaces(tokenizer):
        return found
    left = list(range(len(texts)))
    for before in BEFORE:
        (start,) = text_ids([before], tokenizer)
        for place, ids in zip(left, text_ids([before + texts[place] for place in left], tokenizer), strict=True):
            if ids[: len(start)] == start:
                found[place] = ids[len(start) :]
                left = [other for other in left if other != place]
    if left:
        cuts.remarks["the tokenizer writes a space before the response that nobody wrote"] += len(left)
    return found


def writes_spaces(tokenizer: Any) -> bool:
    """Return True if the tokenizer begins each text with a space, so that texts put together hold one too many."""
    if not hasattr(tokenizer, "decode"):
        return False
    first, second, both = text_ids(["x", "y", "xy"], tokenizer)
    return bool(tokenizer.decode(both) == "xy" != tokenizer.decode([*first, *second]))


def truncate(pair: PairIds, keep: str, lengths: Lengths, *, begin: Iterable[int] = ()) -> Example:
    """Cut a pair to `max_length` tokens a side; the last token of both responses ends a turn, and stays.

    If the prompt begins with the tokens `begin`, these stay too.
    """
    prompt, chosen, rejected = pair.prompt, pair.chosen, pair.rejected or []
    most, limit = lengths.max_prompt_length, lengths.max_length - lengths.max_prompt_length
    longest = max(len(chosen), len(rejected))
    if len(prompt) + longest > lengths.max_length and len(prompt) > most:
        begun = list(begin)
        first = begun if begun and prompt[: len(begun)] == begun and most > len(begun) else []
        prompt = [*first, *prompt[len(prompt) - most + len(first) :]] if keep == "keep_end" else prompt[:most]
    if len(prompt) + longest > lengths.max_length:
        chosen, rejected = (ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in (chosen, rejected))
    return Example(tuple(prompt), tuple(chosen), tuple(rejected))
