"""Messages as people publish them, {role, content} or ShareGPT's {from, value}, become turns."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from fed.data.records import Record, Unusable, whole_text
from fed.data.rows import Turn

# The words for the roles that chat templates know; others stay as they are.
ROLES = {
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "bard", "bing", "claude", "ai", "function_call"), "assistant"),
    **{role: role for role in ("user", "assistant", "system", "tool")},
    **dict.fromkeys(("observation", "function", "function_response", "tool_response"), "tool"),
}
KEYS = (("role", "content"), ("from", "value"))
# Fields of a message that templates read, besides its role and content.
READ = ("tool_calls", "function_call", "tool_call_id", "name", "reasoning_content", "thinking")


def are_messages(value: object) -> bool:
    """Return True if the value is a list of messages."""
    return isinstance(value, list) and bool(value) and all(is_message(item) for item in value)


def is_message(value: object) -> bool:
    """Return True if the value is a message."""
    return isinstance(value, Mapping) and any(role in value for role, _ in KEYS)


def turns(record: Record, name: str) -> tuple[Turn, ...]:
    """Return a field that is a list of messages.

    Raises:
        ValueError: If it is something else, or a message holds something other than text.
    """
    value = record.value(name)
    if not isinstance(value, list) or not all(map(is_message, value)):
        raise record.wrong(name, "a list of {role, content}")
    return tuple(turn(record, name, message) for message in value)


def turn(record: Record, name: str, message: Mapping[str, Any]) -> Turn:
    """Return one message of a field.

    Raises:
        ValueError: If it lacks its role or its content, or the content is something other than text.
    """
    role_key, content_key = next(keys for keys in KEYS if keys[0] in message)
    role = message[role_key]
    if not isinstance(role, str) or not role:
        raise ValueError(f"{record.where}: {name!r} has a message whose {role_key} is {role!r:.40}, expected a string")
    more = {key: _called(message[key]) for key in READ if message.get(key) not in (None, "", [])}
    content = message.get(content_key)
    if content is None and not more:
        if content_key in message:
            raise Unusable("a message without content")
        raise ValueError(f"{record.where}: {name!r} has a message of {role!r:.40} without {content_key}")
    role = whole_text(role, record.where, name)
    return Turn(
        ROLES.get(role.lower(), role), _text(record, name, content), as_json(record, name, more) if more else ""
    )


def as_json(record: Record, name: str, value: object) -> str:
    """Return the value of a field as JSON, without the nulls that tables write where a row lacks a field of another.

    Raises:
        ValueError: If it is nested too deep, or holds half of a character.
    """
    try:
        text = json.dumps(_without_nulls(value), ensure_ascii=False, default=str)
    except RecursionError as error:
        raise ValueError(f"{record.where}: {name!r} is nested too deep") from error
    return whole_text(text, record.where, name)


def _called(value: object) -> object:
    """Return calls of tools with arguments as objects: OpenAI's API has them as JSON text, templates print objects."""
    if isinstance(value, list):
        return [_called(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    found = {key: _called(item) for key, item in value.items()}
    if isinstance(text := found.get("arguments"), str):
        with suppress(ValueError, RecursionError):  # text of another kind stays as it is
            arguments = json.loads(text)
            if isinstance(arguments, dict):
                found["arguments"] = arguments
    return found


def _text(record: Record, name: str, content: object) -> str:
    """Return a content that is text, or a list of parts that are all text."""
    if content is None:
        return ""
    if isinstance(content, str):
        return whole_text(content, record.where, name)
    if not isinstance(content, Sequence):
        raise ValueError(f"{record.where}: {name!r} has a content that is {type(content).__name__}, expected a string")
    return "".join(_part(record, name, part) for part in content)


def _part(record: Record, name: str, part: object) -> str:
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    if isinstance(part, str):
        return whole_text(part, record.where, name)
    if isinstance(part, Mapping) and kind == "text" and isinstance(part.get("text"), str):
        return whole_text(part["text"], record.where, name)
    raise ValueError(f"{record.where}: {name!r} has a part of type {kind!r:.40}; only text is read, remove the row")


def _without_nulls(value: object) -> object:
    """Return the value without null fields, which tables write where a row lacks a field of another row."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
