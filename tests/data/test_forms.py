"""Every form in which people publish preferences gives the rows that it means; what is no preference is counted."""

import pytest

from fed.data.rows import Preference, Turn
from fed.data.source import Reading
from support.records import ANSWER, SUPERVISED, SYSTEM, USER, answer, chat, message, read, shared

PAIRS, TWO, INDEXED, RANKED = (
    "pairs of chosen and rejected",
    "two responses with a judgement",
    "responses with pairs of their numbers",
    "responses with scores or ranks",
)
LABELLED, SINGLE, TALKS = "single responses labelled good or bad", "single responses", "conversations"


def sides(row: Preference) -> tuple:
    return row.prompt, row.chosen, row.rejected


HI = [message(USER, "Hi")]
ASKED = chat((USER, "Hi"))
# Records, the rows that they mean, and the form that is told.
FORMS = {
    "strings": ({"prompt": "p ", "chosen": " c", "rejected": "r"}, ("p ", " c", "r"), PAIRS),
    "a question": ({"question": "p", "chosen": "c", "rejected": "r"}, ("p", "c", "r"), PAIRS),
    "an instruction with input": (
        {"instruction": "Add", "input": "1 2", "chosen": "3", "rejected": "4"}, ("Add\n1 2", "3", "4"), PAIRS),
    "an instruction without": (
        {"instruction": "Add", "input": "", "chosen": "3", "rejected": "4"}, ("Add", "3", "4"), PAIRS),
    "an implicit prompt of HH": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b c", "rejected": "\n\nHuman: a\n\nAssistant: b d"},
        ("\n\nHuman: a\n\nAssistant:", " b c", " b d"), PAIRS),
    "an implicit prompt of other text": (
        {"chosen": "Q: why? A: because", "rejected": "Q: why? A: no"}, ("Q: why? A:", " because", " no"), PAIRS),
    "explicit messages": (
        {"prompt": HI, "chosen": [message(ANSWER, "c")], "rejected": [message(ANSWER, "r")]},
        (ASKED, answer("c"), answer("r")), PAIRS),
    "messages and strings": ({"prompt": HI, "chosen": "c", "rejected": "r"}, (ASKED, answer("c"), answer("r")), PAIRS),
    "a string and messages": (
        {"prompt": "Hi", "chosen": [message(ANSWER, "c")], "rejected": [message(ANSWER, "r")]},
        (ASKED, answer("c"), answer("r")), PAIRS),
    "implicit messages": (
        {"chosen": [*HI, message(ANSWER, "c")], "rejected": [*HI, message(ANSWER, "r")]},
        (ASKED, answer("c"), answer("r")), PAIRS),
    "UltraFeedback": (
        {"prompt": "Hi", "prompt_id": "7",
         "chosen": [*HI, message(ANSWER, "c")], "rejected": [*HI, message(ANSWER, "r")],
         "messages": [*HI, message(ANSWER, "c")], "score_chosen": 8.0, "score_rejected": 6.5},
        (ASKED, answer("c"), answer("r")), PAIRS),
    "explicit and whole": (
        {"prompt": HI, "chosen": [*HI, message(ANSWER, "c")], "rejected": [*HI, message(ANSWER, "r")]},
        (ASKED, answer("c"), answer("r")), PAIRS),
    "a system message": (
        {"chosen": [message(SYSTEM, "s"), *HI, message(ANSWER, "c")],
         "rejected": [message(SYSTEM, "s"), *HI, message(ANSWER, "r")]},
        (chat((SYSTEM, "s"), (USER, "Hi")), answer("c"), answer("r")), PAIRS),
    "a system column": (
        {"system": "s", "question": "Hi", "chosen": "c", "rejected": "r"},
        (chat((SYSTEM, "s"), (USER, "Hi")), answer("c"), answer("r")), PAIRS),
    "an empty system column": (
        {"system": "", "question": "Hi", "chosen": "c", "rejected": "r"}, (ASKED, answer("c"), answer("r")), PAIRS),
    "a system column beside messages": (
        {"system": "s", "chosen": [*HI, message(ANSWER, "c")], "rejected": [*HI, message(ANSWER, "r")]},
        (chat((SYSTEM, "s"), (USER, "Hi")), answer("c"), answer("r")), PAIRS),
    "tools": (
        {"prompt": HI, "chosen": "c", "rejected": "r", "tools": [{"name": "add"}]},
        (chat((USER, "Hi"), tools='[{"name": "add"}]'), answer("c"), answer("r")), PAIRS),
    "tools as text": (
        {"prompt": HI, "chosen": "c", "rejected": "r", "tools": '[{"name":"add"}]'},
        (chat((USER, "Hi"), tools='[{"name": "add"}]'), answer("c"), answer("r")), PAIRS),
    "a call of a tool": (
        {"prompt": HI, "rejected": "r",
         "chosen": {"role": ANSWER, "content": None, "tool_calls": [{"id": 1, "x": None}]}},
        (ASKED, Turn(ANSWER, "", '{"tool_calls": [{"id": 1}]}'), answer("r")), PAIRS),
    "a call of a tool with its arguments as JSON text, and one with other text": (
        {"prompt": HI, "rejected": {"role": ANSWER, "function_call": {"name": "f", "arguments": "{x"}},
         "chosen": {"role": ANSWER, "tool_calls": [{"function": {"name": "f", "arguments": '{"x":[1]}'}}]}},
        (ASKED, Turn(ANSWER, "", '{"tool_calls": [{"function": {"name": "f", "arguments": {"x": [1]}}}]}'),
         Turn(ANSWER, "", '{"function_call": {"name": "f", "arguments": "{x"}}')), PAIRS),
    "ShareGPT": (
        {"conversations": [shared("system", "s"), shared("human", "Hi")], "chosen": shared("gpt", "c"),
         "rejected": shared("gpt", "r")},
        (chat((SYSTEM, "s"), (USER, "Hi")), answer("c"), answer("r")), PAIRS),
    "parts of text": (
        {"prompt": [{"role": USER, "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}],
         "chosen": "c", "rejected": "r"},
        (ASKED, answer("c"), answer("r")), PAIRS),
    "SafeRLHF": (
        {"prompt": "p", "response_0": "a", "response_1": "b", "better_response_id": 1}, ("p", "b", "a"), TWO),
    "AlpacaEval": ({"instruction": "p", "output_1": "a", "output_2": "b", "preference": 1.2}, ("p", "a", "b"), TWO),
    "AlpacaEval's second": (
        {"instruction": "p", "output_1": "a", "output_2": "b", "preference": 2}, ("p", "b", "a"), TWO),
    "chosen_idx": ({"prompt": "p", "response_0": "a", "response_1": "b", "chosen_idx": 0}, ("p", "a", "b"), TWO),
    "an arena": (
        {"conversation_a": [*HI, message(ANSWER, "a")], "conversation_b": [*HI, message(ANSWER, "b")],
         "winner": "model_b"},
        (ASKED, answer("b"), answer("a")), TWO),
    "a winner": ({"prompt": "p", "response_a": "a", "response_b": "b", "winner": "response_a"}, ("p", "a", "b"), TWO),
    "scores": (
        {"prompt": "p", "response_0": "a", "response_1": "b", "score_0": 1, "score_1": 2.5}, ("p", "b", "a"), TWO),
    "HelpSteer3": (
        {"context": HI, "prompt": HI, "response1": "a", "response2": "b", "overall_preference": -2},
        (ASKED, answer("a"), answer("b")), TWO),
    "HelpSteer2": (
        {"prompt": "p", "response_1": "a", "response_2": "b", "preference_strength": 3}, ("p", "b", "a"), TWO),
    "the original DPO": (
        {"prompt": "p", "responses": ["a", "b"], "pairs": [[1, 0]], "sft_target": "b"}, ("p", "b", "a"), INDEXED),
    "ranks": ({"prompt": "p", "responses": ["a", "b"], "ranks": [2, 1]}, ("p", "b", "a"), RANKED),
    "a best one": ({"prompt": "p", "responses": ["a", "b"], "chosen_idx": 0}, ("p", "a", "b"), RANKED),
}  # fmt: skip
GOOD = {
    "a completion": ({"prompt": "p", "completion": "c"}, ("p", "c", None), SINGLE),
    "a completion in messages": (
        {"prompt": HI, "completion": [message(ANSWER, "c")]}, (ASKED, answer("c"), None), SINGLE),
    "Alpaca": ({"instruction": "Add", "input": "1 2", "output": "3"}, ("Add\n1 2", "3", None), SINGLE),
    "a good one": ({"prompt": "p", "completion": "c", "label": True}, ("p", "c", None), LABELLED),
    "messages": ({"messages": [*HI, message(ANSWER, "c")]}, (ASKED, answer("c"), None), TALKS),
    "ShareGPT": ({"conversations": [shared("human", "Hi"), shared("gpt", "c")]}, (ASKED, answer("c"), None), TALKS),
    "the original DPO": (
        {"prompt": "p", "responses": ["a", "b"], "pairs": [[1, 0]], "sft_target": "t"}, ("p", "t", None), INDEXED),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_record_gives_the_pair_that_it_means(tmp_path, name):
    record, expected, form = FORMS[name]
    found = read(tmp_path, record)
    assert [sides(row) for row in found.rows] == [expected] and found.skipped == {}
    assert found.forms == (form,)


@pytest.mark.parametrize("name", GOOD)
def test_a_record_gives_the_response_to_imitate(tmp_path, name):
    record, expected, form = GOOD[name]
    found = read(tmp_path, record, reading=SUPERVISED)
    assert [sides(row) for row in found.rows] == [expected] and found.forms == (form,)


@pytest.mark.parametrize("name", [name for name in GOOD if name != "the original DPO"])
def test_single_responses_are_refused_where_pairs_are_needed(tmp_path, name):
    record, _, form = GOOD[name]
    with pytest.raises(ValueError, match=rf"a\.jsonl:1 holds {form}, but loss=dpo learns from pairs of responses; use"):
        read(tmp_path, record)


NAN = float("nan")
TWO_SIDES = {"prompt": "p", "response_0": "a", "response_1": "b"}
SKIPPED = {
    "a tie": [
        {**TWO_SIDES, "better_response_id": -1},
        {"instruction": "p", "output_1": "a", "output_2": "b", "preference": 1.5},
        {"instruction": "p", "output_1": "a", "output_2": "b", "preference": 0},
        {**TWO_SIDES, "winner": "tie (bothbad)"},
        {**TWO_SIDES, "score_0": 2, "score_1": 2.0},
        {"prompt": HI, "response1": "a", "response2": "b", "overall_preference": 0},
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, 1]},
    ],
    "no judgement": [
        {**TWO_SIDES, "better_response_id": None},
        {**TWO_SIDES, "better_response_id": NAN},
        {"instruction": "p", "output_1": "a", "output_2": "b", "preference": NAN},
        {"instruction": "p", "output_1": "a", "output_2": "b", "preference": ""},
        {**TWO_SIDES, "winner": None},
        {**TWO_SIDES, "score_0": 2, "score_1": NAN},
        {"prompt": "p", "responses": ["a", "b"], "scores": [1, None]},
        {"prompt": "p", "responses": ["a", "b"], "chosen_idx": None},
    ],
    "empty response": [
        {"prompt": "p", "chosen": None, "rejected": "r"},
        {"prompt": "p", "chosen": NAN, "rejected": "r"},
        {"prompt": "p", "chosen": "c", "rejected": " \n"},
        {"prompt": HI, "chosen": [message(ANSWER, "")], "rejected": "r"},
        {"prompt": "p", "responses": ["a", None], "scores": [1, 2]},
    ],
    "empty prompt": [{"prompt": [message(USER, "")], "chosen": "c", "rejected": "r"}],
    "chosen equals rejected": [{"prompt": HI, "chosen": "a", "rejected": "a"}],
    "no start in common": [{"chosen": "a b", "rejected": "c d"}],
    "no turn in common": [
        {"chosen": [message(USER, "a"), message(ANSWER, "b")], "rejected": [message(USER, "c"), message(ANSWER, "d")]}
    ],
    "response holds a further turn": [
        {"prompt": HI, "chosen": [message(ANSWER, "c"), message(USER, "?"), message(ANSWER, "d")], "rejected": "r"}
    ],
    "no assistant turn at the end": [
        {"prompt": HI, "chosen": [message(USER, "c")], "rejected": "r"},
        {"chosen": [*HI, message(USER, "c")], "rejected": [*HI, message(ANSWER, "c")]},
    ],
}


@pytest.mark.parametrize("reason", SKIPPED)
def test_what_is_no_preference_is_dropped_and_counted(tmp_path, reason):
    for record in SKIPPED[reason]:
        with pytest.raises(ValueError, match=rf"has no pairs \(skipped: 1 x {reason}\)"):
            read(tmp_path, record)


def test_bad_responses_and_talks_without_an_answer_are_counted(tmp_path):
    records = [{"prompt": "p", "completion": "c", "label": label} for label in (1, "true", False, "0", None)]
    found = read(tmp_path, *records, reading=SUPERVISED)
    assert len(found.rows) == 2 and found.skipped == {"labelled as a bad response": 2, "no judgement": 1}
    with pytest.raises(ValueError, match="1 x no assistant turn"):
        read(tmp_path, {"messages": HI}, reading=SUPERVISED)


def test_every_answer_of_a_conversation_is_a_row_of_its_own(tmp_path):
    talk = [*HI, message(ANSWER, "a"), message(USER, "why?"), message(ANSWER, "b"), message(USER, "bye")]
    other = [message(USER, "Hm"), message(ANSWER, "c")]
    found = read(tmp_path, {"messages": talk}, {"messages": other}, reading=SUPERVISED)
    assert [(len(row.prompt.turns), row.chosen.content) for row in found.rows] == [(1, "a"), (3, "b"), (1, "c")]
    assert [row.conversation for row in found.rows] == ["Hi", "Hi", "Hm"]


def test_all_pairs_of_several_ranked_responses_or_the_best_and_the_worst(tmp_path):
    record = {"prompt": "p", "responses": ["a", "b", "c", "d"], "scores": [1, 3, None, 2]}
    found = {(row.chosen, row.rejected) for row in read(tmp_path, record).rows}
    assert found == {("b", "a"), ("b", "d"), ("d", "a")}
    worst = read(tmp_path, record, reading=Reading(pairs_per_prompt="best_worst"))
    assert [(row.chosen, row.rejected) for row in worst.rows] == [("b", "a")]


def test_responses_by_prompt_in_one_json_file(tmp_path):
    dpo = {"p": {"responses": ["a", "b", "c"], "pairs": [[0, 1], [2, 1]], "sft_target": "a"}}
    found = read(tmp_path, dpo, name="a.json")
    assert [(row.prompt, row.chosen, row.rejected) for row in found.rows] == [("p", "a", "b"), ("p", "c", "b")]
    found = read(tmp_path, {"p": ["x", "y"], "q": ["z"]}, name="b.json", reading=SUPERVISED)
    assert [(row.prompt, row.chosen) for row in found.rows] == [("p", "x"), ("p", "y"), ("q", "z")]


def test_columns_say_which_field_is_which(tmp_path):
    record = {"text": "p", "good": "c", "bad": "r", "prompt": "another", "user": 7}
    columns = {"prompt": "text", "chosen": "good", "rejected": "bad"}
    (row,) = read(tmp_path, record, reading=Reading(columns=columns)).rows
    assert sides(row) == ("p", "c", "r") and row.extra == (("user",), ("7",))
    with pytest.raises(ValueError, match=r"a\.jsonl:1: no field 'best', which columns\.chosen names; the record has"):
        read(tmp_path, record, reading=Reading(columns={"chosen": "best"}))


def test_group_and_conversation_are_read_and_other_columns_kept(tmp_path):
    record = {"prompt": HI, "chosen": "c", "rejected": "r", "group": "g", "conversation": 3, "user": "u", "gold": None}
    (row,) = read(tmp_path, record).rows
    assert (row.group, row.conversation, row.extra.get("user"), row.column("user")) == ("g", "3", "u", "u")
    assert row.extra.names == ("user",) and row.column("gold") is None and row.column("prompt") == "Hi"


def test_pairs_that_share_a_column_are_one_conversation(tmp_path):
    records = [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": "r", "pair": n // 2} for n in range(4)]
    found = read(tmp_path, *records, reading=Reading(holdout_by="pair"))
    assert [row.conversation for row in found.rows] == ["0", "0", "1", "1"]
    found = read(tmp_path, *records, reading=Reading(holdout_by="chosen"))
    assert [row.conversation for row in found.rows] == ["c0", "c1", "c2", "c3"]
    with pytest.raises(
        ValueError, match=r"a\.jsonl:1: holdout_by=user names no column of the record, which has prompt"
    ):
        read(tmp_path, *records, reading=Reading(holdout_by="user"))
