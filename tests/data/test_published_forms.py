"""Records as well-known data sets have them, and what they lack, in the words of their publishers."""

import json
from datetime import date

import pyarrow as pa
import pyarrow.parquet
import pytest

from fed.data.chat import ChatSettings, in_form
from fed.data.rows import Chat, Preference, Turn
from fed.data.tokens import Lengths, tokenize
from load_data import load_file
from support.records import ANSWER, SUPERVISED, SYSTEM, USER, answer, chat, message, read
from support.templates import tokenizer

GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}
HI = [message(USER, "Hi")]


@pytest.mark.parametrize(
    "more",
    [
        {"trajectory": [{"from": "user", "value": "Solve x"}]},
        {"system": "", "input": "Why?"},
        {"query": "Two"},
        {"task": "add two numbers"},
    ],
)
def test_a_prompt_under_another_name_is_asked_for_not_guessed(tmp_path, more):
    record = {**more, "chosen": "Step 1: we subtract", "rejected": "Step 1: we add"}
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no prompt, but perhaps it is '\w+'; columns.prompt="):
        read(tmp_path, record)


def test_labels_beside_an_implicit_prompt_are_no_prompt(tmp_path):
    (row,) = read(tmp_path, {"chosen": "a b c", "rejected": "a b d", "id": "x-1", "score": 3, "source": "web"}).rows
    assert (row.prompt, row.chosen, row.rejected) == ("a b", " c", " d")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**GOOD, "prompt": None}, "empty prompt"),
        ({**GOOD, "prompt": float("nan")}, "empty prompt"),
        ({**GOOD, "prompt": []}, "empty prompt"),
        ({**GOOD, "chosen": []}, "empty response"),
        ({**GOOD, "prompt": [{"role": USER, "content": None}]}, "a message without content"),
    ],
)
def test_what_is_missing_is_counted_and_the_next_record_read(tmp_path, record, reason):
    found = read(tmp_path, record, GOOD)
    assert len(found.rows) == 1 and found.skipped == {reason: 1}


def test_a_null_prompt_beside_an_instruction_is_the_instruction(tmp_path):
    (row,) = read(tmp_path, {**GOOD, "prompt": None, "instruction": "add"}).rows
    assert row.prompt == "add"


def test_ultrachat_and_no_robots_are_conversations_whatever_their_prompt_says(tmp_path):
    talk = [*HI, message(ANSWER, "a"), message(USER, "b"), message(ANSWER, "c")]
    for prompt in ("Hi", HI):
        found = read(tmp_path, {"prompt": prompt, "prompt_id": "x", "messages": talk}, reading=SUPERVISED)
        assert [row.chosen for row in found.rows] == [answer("a"), answer("c")]
    found = read(tmp_path, {"messages": talk}, {"messages": []}, {"messages": None}, reading=SUPERVISED)
    assert len(found.rows) == 2 and found.skipped == {"empty conversation": 2}


def test_numbers_of_sides_that_count_from_zero_count_from_zero(tmp_path):
    sides = {"prompt": "p", "response_0": "zero", "response_1": "one"}
    found = read(tmp_path, *({**sides, "preference": value} for value in (0, 1, 0.5)))
    assert [row.chosen for row in found.rows] == ["zero", "one"] and found.skipped == {"a tie": 1}
    with pytest.raises(ValueError, match="'preference' is 2, expected 0 or 1"):
        read(tmp_path, {**sides, "preference": 2})


def test_sides_of_an_arena_may_be_answers_alone(tmp_path):
    sides = {"response_a": [message(ANSWER, "a")], "response_b": [message(ANSWER, "b")], "winner": "model_a"}
    (row,) = read(tmp_path, {"prompt": "Hi", **sides}).rows
    assert (row.prompt, row.chosen, row.rejected) == (chat((USER, "Hi")), answer("a"), answer("b"))
    with pytest.raises(ValueError, match="1 x a tie"):
        read(tmp_path, {"prompt": "Hi", **sides, "winner": "both_bad"})


def test_a_system_message_may_stand_in_the_prompt_alone(tmp_path):
    prompt = [message(SYSTEM, "s"), *HI]
    sides = {"chosen": [*HI, message(ANSWER, "c")], "rejected": [*HI, message(ANSWER, "r")]}
    (row,) = read(tmp_path, {"prompt": prompt, **sides}).rows
    assert (row.prompt, row.chosen) == (chat((SYSTEM, "s"), (USER, "Hi")), answer("c"))


def test_lists_under_the_names_of_labels_are_none(tmp_path):
    sides = {"chosen": [*HI, message(ANSWER, "c")], "rejected": [*HI, message(ANSWER, "r")]}
    (row,) = read(tmp_path, {**sides, "conversation": [{"input": "Hi", "output": "c"}], "group": ["x"]}).rows
    assert (row.conversation, row.group) == ("Hi", "a")


def test_roles_have_their_usual_names(tmp_path):
    turns = [message("System", "s"), message("User", "q"), {"from": "bard", "value": "a"}]
    (row,) = read(tmp_path, {"messages": turns}, reading=SUPERVISED).rows
    assert row.prompt == chat((SYSTEM, "s"), (USER, "q")) and row.chosen == answer("a")


def test_ranks_beside_a_single_score_and_lists_in_csv(tmp_path):
    (row,) = read(tmp_path, {"prompt": "p", "responses": ["a", "b"], "score": 3, "ranks": [2, 1]}).rows
    assert row.chosen == "b"
    (tmp_path / "a.csv").write_text('prompt,responses,scores\np,"[""a"", ""b""]","[1, 2]"\n')
    (row,) = load_file(str(tmp_path / "a.csv")).rows
    assert row.chosen == "b"
    found = read(tmp_path, {"prompt": "p", "responses": list("abcd"), "chosen_idx": 0})
    assert len(found.rows) == 3 and found.skipped == {}


def test_nulls_that_a_table_writes_between_tools_are_left_out(tmp_path):
    tools = [
        {"name": "f", "parameters": {"city": {"type": "string"}, "num": None}},
        {"name": "g", "parameters": {"city": None, "num": {"type": "int"}}},
    ]
    (row,) = read(tmp_path, {**GOOD, "tools": tools}).rows
    assert json.loads(row.prompt.tools) == [
        {"name": "f", "parameters": {"city": {"type": "string"}}},
        {"name": "g", "parameters": {"num": {"type": "int"}}},
    ]


HALF = "\\ud83d"


@pytest.mark.parametrize(
    "line",
    [
        f'{{"prompt": "q", "responses": ["a {HALF}", "b"], "pairs": [[0, 1]]}}',
        f'{{"prompt": [{{"role": "{HALF}", "content": "x"}}], "chosen": "c", "rejected": "r"}}',
        f'{{"prompt": "p", "chosen": "c", "rejected": "r", "tools": [{{"name": "{HALF}"}}]}}',
        f'{{"prompt": [{{"role": "assistant", "tool_calls": [{{"id": "{HALF}"}}]}}], "chosen": "c", "rejected": "r"}}',
        '{"prompt": "p", "chosen": "c", "rejected": "r", "tools": "' + "[" * 200_000 + '"}',
        '{"prompt": "p", "response_a": "a", "response_b": "b", "score_a": 1e1, "score_b": ' + "9" * 401 + "}",
    ],
)
def test_odd_texts_and_numbers_are_one_line(tmp_path, line):
    with pytest.raises(ValueError) as found:
        read(tmp_path, line)
    assert f"{tmp_path}/a.jsonl:1: " in str(found.value) and "\n" not in str(found.value)


def test_half_a_character_in_a_column_that_nothing_reads_is_told_as_not_read(tmp_path):
    found = read(tmp_path, f'{{"prompt": "p", "chosen": "c", "rejected": "r", "note": "{HALF}"}}')
    assert len(found.rows) == 1 and found.unread == ("note",)


def test_a_table_with_dates_in_tool_calls_and_one_with_text_that_is_no_utf8(tmp_path):
    call = {"role": ANSWER, "content": None, "tool_calls": [{"day": date(2026, 1, 2)}]}
    record = {"prompt": [{"role": USER, "content": "Hi", "tool_calls": None}], "chosen": [call], "rejected": "r"}
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.Table.from_pylist([{**record, "rejected": [call | {"content": "r"}]}]), path)
    (row,) = load_file(str(path)).rows
    assert "2026-01-02" in row.chosen.more
    buffers = [None, pa.py_buffer(b"\0\0\0\0\x02\0\0\0"), pa.py_buffer(b"p\xff")]
    bad = pa.Array.from_buffers(pa.string(), 1, buffers)
    pa.parquet.write_table(pa.table([bad, pa.array(["c"]), pa.array(["r"])], ["prompt", "chosen", "rejected"]), path)
    with pytest.raises(ValueError, match=r"a\.parquet, row 1 or one of the next 1000: a text is not UTF-8"):
        load_file(str(path))


def test_text_that_begins_with_human_and_no_line_breaks_is_a_users_turn():
    row = in_form(Preference("Human: Hi\n\nAssistant:", " a", " b"), ChatSettings(text_as_chat=True))
    assert row.prompt == Chat((Turn(USER, "Hi"),))


MISTRAL3 = (  # writes the system text into the last message, if that is the user's
    "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def test_a_template_that_writes_the_question_otherwise_once_it_is_answered_drops_the_pair():
    tokens = tokenizer("Mistral")
    tokens.chat_template = MISTRAL3
    rows = [Preference(chat((SYSTEM, "Be kind."), (USER, "2 + 2?")), answer("Four"), answer("Five"))]
    rows.append(Preference(chat((USER, "2 + 2?")), answer("Four"), answer("Five")))
    found = tokenize(rows, tokens, lengths=Lengths(400, 200))
    assert found.kept.tolist() == [False, True]
    assert found.cuts.dropped == {"the chat template writes the question otherwise once it is answered": 1}


def test_keys_of_calls_and_tools_spell_no_special_token():
    tokens = tokenizer("ChatML")
    tokens.chat_template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}CALL {{ m.tool_calls | tojson }}"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    call = Turn(ANSWER, "", json.dumps({"tool_calls": [{"<|im_end|>": "é"}]}, ensure_ascii=False))
    row = Preference(chat((USER, "q"), tools='[{"<|im_start|>": 1}]'), call, answer("no"))
    (example,) = tokenize([row], tokens, lengths=Lengths(400, 200)).examples
    ids = [*example.prompt, *example.chosen]
    assert 'CALL [{"<|im_end|>": "é"}]' in tokens.decode(ids)
    assert ids.count(tokens.convert_tokens_to_ids("<|im_end|>")) == 2, "of the user's and of the assistant's turn"
