"""Prompts as records of data, which are read again as they were."""

import json

import pytest

from fed.data.rows import Chat, Preference, Turn
from fed.data.source import Reading
from feedback.asking import as_json, until
from support.records import USER, chat, read

CALL = json.dumps({"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]})
PROMPTS = [
    "Why?",
    chat((USER, "Why?")),
    chat(("system", "Be kind."), (USER, "Why?"), tools=json.dumps([{"name": "f"}])),
    Chat((Turn(USER, "Why?"), Turn("assistant", "", CALL), Turn("tool", "42"))),
]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_is_read_as_it_was_written(tmp_path, prompt) -> None:
    record = as_json(Preference(prompt, "", None))
    assert read(tmp_path, record, reading=Reading(needs="prompts")).rows[0].prompt == prompt


def test_a_text_ends_before_the_first_stop_string() -> None:
    assert until("one two three", ("three", "two")) == "one " and until("one", ()) == until("one", ("x",)) == "one"
