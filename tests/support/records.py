"""Records in published forms, and the rows that are read from them."""

import json

from fed.data.rows import Chat, Turn
from fed.data.source import Reading
from load_data import load_file

USER, ANSWER, SYSTEM = "user", "assistant", "system"
SUPERVISED = Reading(needs="imitated")


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def shared(role: str, content: str) -> dict[str, str]:
    """Return a message in ShareGPT's form."""
    return {"from": role, "value": content}


def chat(*turns: tuple[str, ...], tools: str = "") -> Chat:
    return Chat(tuple(Turn(*turn) for turn in turns), tools)


def answer(text: str) -> Turn:
    return Turn(ANSWER, text)


def read(tmp_path, *records, reading=Reading(), name="a.jsonl"):  # noqa: B008  # frozen
    path = tmp_path / name
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")
    return load_file(str(path), reading=reading)
