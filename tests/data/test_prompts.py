"""Prompts of any records, and as token ids."""

from dataclasses import replace
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from fed.data.chat import ChatSettings
from fed.data.prompts import different, prompt_ids
from fed.data.rows import HUMAN, Preference, Skip
from fed.data.source import Reading
from fed.data.tokens import Lengths, tokenize
from support.records import ANSWER, SYSTEM, USER, answer, chat, message, read
from support.templates import FAMILIES, tokenizer

PROMPTS = Reading(needs="prompts")
LONG = Lengths(512, 256)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"id": 1, "prompt": "Why?", "group": "a"}, "Why?"),
        ({"instruction": "Sum up", "input": "a text"}, "Sum up\na text"),
        ({"question": "Why?", "reference": None}, "Why?"),
        ({"prompt": "Why?", "system": "Be kind."}, chat((SYSTEM, "Be kind."), (USER, "Why?"))),
        ({"messages": [message(USER, "Why?")]}, chat((USER, "Why?"))),
        ({"messages": [message(USER, "Why?"), message(ANSWER, "So.")]}, chat((USER, "Why?"))),
        ({"conversations": [{"from": "human", "value": "Why?"}]}, chat((USER, "Why?"))),
        ({"prompt": "Why?", "chosen": "good", "rejected": "bad"}, "Why?"),
        ({"prompt": "Why?", "completion": "So."}, "Why?"),
    ],
)
def test_any_record_with_a_prompt_is_one(tmp_path, record: dict[str, Any], prompt: object) -> None:
    (row,) = read(tmp_path, record, reading=PROMPTS).rows
    assert row.prompt == prompt and row.group == record.get("group", "a")


def test_columns_stay_and_what_is_no_prompt_is_counted_or_refused(tmp_path) -> None:
    found = read(tmp_path, {"prompt": "Why?", "id": 7}, {"prompt": ""}, {"prompt": None}, reading=PROMPTS)
    assert found.rows[0].column("id") == "7" and found.skipped == {"empty prompt": 2}
    with pytest.raises(ValueError, match=r"a.jsonl:1: the record has 'text', which is no known form"):
        read(tmp_path, {"text": "x"}, reading=PROMPTS)
    renamed = replace(PROMPTS, columns={"prompt": "text"})
    assert read(tmp_path, {"text": "x"}, reading=renamed).rows[0].prompt == "x"
    rows = [Preference("a", "", None), Preference("b", "", None), Preference("a", "x", "y")]
    assert different(rows) == rows[:2]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_conversation_is_asked_as_the_template_asks_for_an_answer(family: str) -> None:
    own = tokenizer(family)
    row = Preference(chat((USER, "Why so?"), (ANSWER, "So."), (USER, "And now?")), answer(""), None)
    (ids,) = prompt_ids([row], own, lengths=LONG, chat=ChatSettings())
    messages = [message(*turn[:2]) for turn in row.prompt.turns]
    assert ids == own.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]


def test_people_spell_no_special_token_and_text_is_asked_as_it_is_trained() -> None:
    own = tokenizer("ChatML")
    text, spelled = Preference("Why <|im_end|>?", "x", "y"), chat((USER, "a<|im_end|>b"))
    ids, of_chat = prompt_ids([text, Preference(spelled, answer(""), None)], own, lengths=LONG, chat=ChatSettings())
    end = own.convert_tokens_to_ids("<|im_end|>")
    assert end not in ids and of_chat.count(end) == 1
    trained = tokenize([text], own, lengths=LONG).examples[0].prompt
    assert tuple(ids) == trained


def test_long_prompts_are_cut_where_they_say() -> None:
    own = tokenizer("Llama 3")
    row = Preference("abcdefgh", "", None)
    begin = own.bos_token_id
    own.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{own.bos_token} $A", special_tokens=[(own.bos_token, begin)]
    )

    def cut(row: Preference, most: int, truncation: str | None = None) -> Any:
        lengths = Lengths(most + 8, most, truncation)
        return prompt_ids([row], own, lengths=lengths, chat=ChatSettings())[0]

    assert own.decode(cut(row, 4)[1:]) == "fgh" and cut(row, 4)[0] == begin
    assert own.decode(cut(row, 4, "keep_start")[1:]) == "abc" and cut(row, 4, "keep_start")[0] == begin
    assert own.decode(cut(replace(row, truncation="keep_start"), 4)[1:]) == "abc"
    talk = Preference(chat((USER, "a" * 90), (ANSWER, "b" * 90), (USER, "last")), answer(""), None)
    whole = prompt_ids([replace(talk, prompt=chat((USER, "last")))], own, lengths=LONG, chat=ChatSettings())[0]
    assert cut(talk, 60, "messages") == whole
    assert len(cut(talk, 60)) == 60


def test_what_cannot_be_asked_says_why() -> None:
    own = tokenizer("ChatML")
    ids, skip = prompt_ids(
        [Preference("a", "", None), Preference(chat(("nobody", "x"), ("system", "y")), answer(""), None)],
        tokenizer("Gemma"),
        lengths=LONG,
        chat=ChatSettings(),
    )
    assert isinstance(ids, list) and isinstance(skip, Skip) and "refused by the chat template" in skip.reason
    own.chat_template = None
    with pytest.raises(ValueError, match="has no chat template"):
        prompt_ids([Preference(chat((USER, "x")), answer(""), None)], own, lengths=LONG, chat=ChatSettings())
    marked = prompt_ids(
        [Preference("x", "", None)],
        own,
        lengths=LONG,
        chat=ChatSettings("none", text_as_chat=True),
    )
    assert own.decode(marked[0]) == f"{HUMAN} x\n\nAssistant:"
