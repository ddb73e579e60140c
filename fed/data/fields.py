"""The parts of a record that several forms share: its prompt, its responses, its numbers, and the row they make."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence

from fed.data.messages import are_messages, as_json, is_message, turn, turns
from fed.data.records import Record, Unusable, whole_text
from fed.data.rows import ROLES, Chat, Preference, Prompt, Response, Skip, Turn, usable

PROMPTS = ("prompt", "instruction", "question")  # the first that a record has is its prompt
CONVERSATIONS = ("messages", "conversations", "conversation")
Rows = Iterator[Preference | Skip]


def prompt_of(record: Record) -> Prompt | None:
    """Return the prompt: a conversation if it is a list of messages or comes with a system text or with tools."""
    tools = tools_of(record)
    name = next((name for name in (*PROMPTS, *CONVERSATIONS) if record.value(name) is not None), None)
    if name is None:
        return None
    found = record.value(name)
    if found == []:
        raise Unusable("empty prompt")
    if are_messages(found):
        conversation = turns(record, name)
    elif isinstance(found, str):
        text = record.text(name)
        more = record.value("input") if name == "instruction" else None
        text = f"{text}\n{record.text('input')}" if more else text
        if not (record.has("system") or tools):
            return text
        conversation = (Turn("user", text),)
    else:
        raise record.wrong(name, "a string or a list of {role, content}")
    return Chat(with_system(record, conversation), tools)


def with_system(record: Record, conversation: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Return the conversation, behind the record's system text if it has one of its own and the conversation none."""
    if record.value("system") and conversation and conversation[0].role != "system":
        return (Turn("system", record.text("system")), *conversation)
    return conversation


def tools_of(record: Record) -> str:
    """Return the tools as a JSON list; they are published as one, or as its text."""
    value = record.value("tools")
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{record.where}: 'tools' is not JSON ({error})") from error
    if not value:
        return ""
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise record.wrong("tools", "a list of objects")
    return as_json(record, "tools", value)


def response_of(record: Record, name: str, value: object, prompt: Prompt) -> Response | Skip:
    """Return a response to the prompt: text, a message, or a conversation that goes on from the prompt."""
    if value is None or value == []:
        return Skip("empty response")
    if isinstance(value, str):
        text = whole_text(value, record.where, name)
        return Turn("assistant", text) if isinstance(prompt, Chat) else text
    if isinstance(value, Mapping) and is_message(value):
        rest: tuple[Turn, ...] = (turn(record, name, value),)
    elif are_messages(value):
        rest = tuple(turn(record, name, message) for message in value)  # type: ignore[attr-defined]
    else:
        raise record.wrong(name, "a string or a list of {role, content}")
    shared = prompt.turns if isinstance(prompt, Chat) else (Turn("user", prompt),)
    for known in (shared, tuple(one for one in shared if one.role != "system")):
        if known and rest[: len(known)] == known:
            return single(rest[len(known) :])
    return single(rest)


def single(rest: Sequence[Turn]) -> Turn | Skip:
    """Return the turn that is the response, or why what follows the prompt is none."""
    if not rest or rest[0].role != "assistant":
        known = not rest or rest[0].role in ROLES
        return Skip("no assistant turn at the end" + ("" if known else f", but one of {rest[0].role!r:.40}"))
    return rest[0] if len(rest) == 1 else Skip("response holds a further turn")


def as_chat(prompt: Prompt, *responses: Response | Skip) -> Prompt:
    """Return the prompt as a conversation if a response is a message."""
    is_chat = any(isinstance(response, Turn) for response in responses)
    return Chat((Turn("user", prompt),)) if is_chat and isinstance(prompt, str) else prompt


def pair(record: Record, prompt: Prompt, chosen: Response | Skip, rejected: Response | Skip) -> Preference | Skip:
    """Return the row of two responses, or why they make none."""
    for response in (chosen, rejected):
        if isinstance(response, Skip):
            return response
    assert not isinstance(chosen, Skip) and not isinstance(rejected, Skip)
    return usable(preference(record, as_chat(prompt, chosen, rejected), chosen, rejected))


def preference(record: Record, prompt: Prompt, chosen: Response, rejected: Response | None) -> Preference:
    """Make a row; the group defaults to the file, the conversation to the prompt's first human turn."""
    group, conversation = (
        None if isinstance(record.fields.get(name), list | dict) else record.label(name)
        for name in ("group", "conversation")
    )
    group = record.part if group is None else group
    return Preference(prompt, chosen, rejected, group=group, conversation=conversation or "")


def number(record: Record, name: str) -> float | None:
    """Return a field that is a number, also one written as text; None if it is missing."""
    value = record.value(name)
    if isinstance(value, str) and value.strip():
        try:
            value = float(value)
        except ValueError:
            raise record.wrong(name, "a number") from None
    if value is None or value == "" or value != value:
        return None
    if not isinstance(value, int | float) or abs(value) > sys.float_info.max:
        raise record.wrong(name, "a number")
    return float(value)


def values_of(record: Record, name: str) -> list[object]:
    """Return a field that is a list, or the text of one in JSON."""
    value = record.value(name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, list):
        raise record.wrong(name, "a list")
    return value


def needed_prompt(record: Record) -> Prompt:
    """Return the prompt.

    Raises:
        ValueError: If the record has none.
    """
    prompt = prompt_of(record)
    if prompt is None and any(record.has(name) for name in (*PROMPTS, *CONVERSATIONS)):
        raise Unusable("empty prompt")
    if prompt is None:
        raise ValueError(
            f"{record.where}: no prompt; the record has {record.names()}: columns.prompt=NAME says which field it is"
        )
    return prompt
