"""Pairs of chosen and rejected, whose prompt is a field of the record or what both sides begin with."""

from fed.data.fields import (
    CONVERSATIONS,
    PROMPTS,
    Rows,
    needed_prompt,
    pair,
    preference,
    response_of,
    single,
    tools_of,
    with_system,
)
from fed.data.messages import are_messages, turns
from fed.data.records import Record
from fed.data.rows import ASSISTANT, HUMAN, Chat, Preference, Skip, Turn, usable
from fed.data.source import Reading

TEXTS = ("system", "input", "query", "context", "history")  # names of fields that hold text, however short


def pairs(record: Record, reading: Reading) -> Rows:
    """Yield the pair of chosen and rejected, whose prompt is a field or what both sides begin with."""
    chosen, rejected = record.value("chosen"), record.value("rejected")
    if chosen is None or rejected is None or [] in (chosen, rejected):
        yield Skip("empty response")
        return
    lists = are_messages(chosen), are_messages(rejected)
    if all(lists) and not are_messages(record.fields.get("prompt")) and turns(record, "chosen")[0].role != "assistant":
        yield pair_of_conversations(record)
    elif all(isinstance(side, str) for side in (chosen, rejected)) and not _names_prompt(record):
        yield _pair_of_texts(record)
    else:
        prompt = needed_prompt(record)
        sides = [response_of(record, name, side, prompt) for name, side in (("chosen", chosen), ("rejected", rejected))]
        if isinstance(sides[0], Turn) != isinstance(sides[1], Turn) and not any(isinstance(s, Skip) for s in sides):
            raise ValueError(f"{record.where}: one of chosen and rejected is text and the other messages")
        yield pair(record, prompt, *sides)


def _names_prompt(record: Record) -> bool:
    """Return True if a field is the prompt, or seems to be one under another name.

    Raises:
        ValueError: In the latter case: a start that both sides share by chance would be taken for it.
    """
    if any(record.has(name) for name in (*PROMPTS, *CONVERSATIONS)):
        return True
    if ASSISTANT not in str(record.fields["chosen"]):
        for name, value in record.fields.items():
            is_text = isinstance(value, str) and (len(value.split()) > 1 or name in TEXTS)
            if name not in ("chosen", "rejected", "group", "conversation") and (
                is_text or isinstance(value, list | dict)
            ):
                raise ValueError(
                    f"{record.where}: no prompt, but perhaps it is {name!r}; columns.prompt={name} says so; without "
                    "such fields the prompt is what chosen and rejected begin with"
                )
    return False


def pair_of_conversations(record: Record) -> Preference | Skip:
    """Return the pair of two conversations that share all but their last turn.

    A prompt beside them says nothing new.
    """
    record.value("prompt")
    chosen, rejected = turns(record, "chosen"), turns(record, "rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    sides = single(chosen[shared:]), single(rejected[shared:])
    prompt = with_system(record, chosen[:shared])
    if not prompt:
        return Skip("no turn in common")
    return pair(record, Chat(prompt, tools_of(record)), *sides)


def _pair_of_texts(record: Record) -> Preference | Skip:
    """Return the pair of two texts that share a start: up to the last "Assistant:", or to the last space in common."""
    chosen, rejected = record.text("chosen"), record.text("rejected")
    if ASSISTANT in chosen:
        prompt = common_prompt(chosen, rejected)
        if not prompt:
            return Skip("no assistant turn in common")
        if any(mark in text[len(prompt) :] for text in (chosen, rejected) for mark in (HUMAN, ASSISTANT)):
            return Skip("response holds a further turn")
    else:
        end = next((n for n, (one, other) in enumerate(zip(chosen, rejected, strict=False)) if one != other), None)
        end = min(len(chosen), len(rejected)) if end is None else end
        while end and not chosen[end - 1].isspace():
            end -= 1
        prompt = chosen[:end].rstrip()
        if not prompt:
            return Skip("no start in common")
    return usable(preference(record, prompt, chosen[len(prompt) :], rejected[len(prompt) :]))


def common_prompt(chosen: str, rejected: str) -> str:
    """Return the longest common start that ends in "Assistant:", or ""."""
    end = 0
    while (marker := chosen.find(ASSISTANT, end)) >= 0:
        turn = chosen[end : marker + len(ASSISTANT)]
        if not rejected.startswith(turn, end):
            break
        end += len(turn)
    return chosen[:end]
