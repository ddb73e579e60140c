"""Prompts to which responses are drawn, as token ids."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from fed.data.chat import ChatSettings, ChatTokens, in_form, without_oldest
from fed.data.rows import Chat, Preference, Skip
from fed.data.tokens import Lengths, begin_of_text, text_ids


class Prompt(NamedTuple):
    """A prompt as its row has it, and as token ids that a response follows."""

    row: Preference
    ids: tuple[int, ...]


def prompts_of(rows: Sequence[Preference], tokenizer: Any, *, lengths: Lengths, chat: ChatSettings) -> list[Prompt]:
    """Return the prompts of the rows, each once; those that have no token ids are left out.

    Raises:
        ValueError: If conversations meet a tokenizer without a chat template.
    """
    rows = different(rows)
    found: dict[tuple[int, ...], Prompt] = {}
    for row, ids in zip(rows, prompt_ids(rows, tokenizer, lengths=lengths, chat=chat), strict=True):
        if not isinstance(ids, Skip):
            found.setdefault(tuple(ids), Prompt(row, tuple(ids)))
    return list(found.values())


def turn_ends(tokenizer: Any, chat: ChatSettings) -> tuple[int, ...]:
    """Return the token with which the tokenizer's chat template ends an assistant's turn, if it is one."""
    end = ChatTokens(tokenizer, chat.chat_template_kwargs).ends_in
    ids = tokenizer(end, add_special_tokens=False)["input_ids"] if end else []
    return (ids[-1],) if ids else ()


def different(rows: Iterable[Preference]) -> list[Preference]:
    """Return the first row of each prompt."""
    first: dict[object, Preference] = {}
    for row in rows:
        first.setdefault(row.prompt, row)
    return list(first.values())


def prompt_ids(
    rows: Sequence[Preference], tokenizer: Any, *, lengths: Lengths, chat: ChatSettings
) -> list[list[int] | Skip]:
    """Return the token ids of each row's prompt as a response follows it, or why it has none.

    Conversations go through the tokenizer's chat template, up to where it asks for an answer; text is used as it is
    written. A prompt of more than `max_prompt_length` tokens keeps its last ones, or those that `truncation` says, and
    the token that begins every text.

    Raises:
        ValueError: If conversations meet a tokenizer without a chat template.
    """
    rows = [in_form(row, chat) for row in rows]
    texts = iter(text_ids([row.prompt for row in rows if isinstance(row.prompt, str)], tokenizer))
    chats = [row.prompt for row in rows if isinstance(row.prompt, Chat)]
    template = ChatTokens(tokenizer, chat.chat_template_kwargs) if chats else None
    begin = begin_of_text(tokenizer)
    of_chats = iter(_fitting(chats, template, lengths)) if template else iter(())
    found: list[list[int] | Skip] = []
    for row in rows:
        ids = [*begin, *next(texts)] if isinstance(row.prompt, str) else next(of_chats)
        keep = lengths.truncation if lengths.truncation in ("keep_start", "keep_end") else row.truncation
        found.append(ids if isinstance(ids, Skip) else _cut(ids, keep or "keep_end", begin, lengths.max_prompt_length))
    return found


def _fitting(chats: Sequence[Chat], template: ChatTokens, lengths: Lengths) -> Iterator[list[int] | Skip]:
    """Yield the ids of conversations, with truncation=messages without their oldest turns if they are too long."""
    for chat, ids in zip(chats, template.prompts(chats), strict=True):
        shorter: Chat | None = chat
        while lengths.truncation == "messages" and not isinstance(ids, Skip) and len(ids) > lengths.max_prompt_length:
            shorter = None if shorter is None else without_oldest(shorter)
            if shorter is None:
                break
            ids = next(template.prompts([shorter]))
        yield ids


def _cut(ids: list[int], keep: str, begin: list[int], most: int) -> list[int] | Skip:
    if not ids:
        return Skip("no token in the prompt")
    if len(ids) <= most:
        return ids
    if keep == "keep_start":
        return ids[:most]
    first = begin if begin and ids[: len(begin)] == begin and most > len(begin) else []
    return [*first, *ids[len(ids) - most + len(first) :]]
