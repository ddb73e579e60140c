"""Records that are no preferences, in whatever way, are one line that names the file and the line."""

import pytest

from support.records import ANSWER, SUPERVISED, USER, message, read

PAIRS, TWO = "pairs of chosen and rejected", "two responses with a judgement"
TWO_SIDES = {"prompt": "p", "response_0": "a", "response_1": "b"}
GOOD_PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
MISTAKES = {
    "no form": ({"a": 1}, "the record has 'a', which is no known form of preferences"),
    "a number": ({**GOOD_PAIR, "chosen": 3}, "'chosen' is int, expected a string or a list of {role, content}"),
    "one side text": (
        {"prompt": "p", "chosen": [message(ANSWER, "c")], "rejected": "r"}, "one of chosen and rejected is text"),
    "an image": (
        {**GOOD_PAIR, "prompt": [{"role": USER, "content": [{"type": "image_url"}]}]},
        "'prompt' has a part of type 'image_url'; only text is read"),
    "no content": ({**GOOD_PAIR, "prompt": [{"role": USER}]}, "a message of 'user' without content"),
    "no role": ({**GOOD_PAIR, "prompt": [{"role": 3, "content": "x"}]}, "a message whose role is 3, expected a string"),
    "a prompt of numbers": ({**GOOD_PAIR, "prompt": 3}, "'prompt' is int, expected a string or a list"),
    "half a character": ('{"prompt": "p", "chosen": "\\ud800", "rejected": "r"}', "'chosen' holds half of a"),
    "half a character in a message": (
        '{"prompt": [{"role": "user", "content": "\\ud800"}], "chosen": "c", "rejected": "r"}', "holds half of a"),
    "tools that are none": ({**GOOD_PAIR, "tools": "{"}, "'tools' is not JSON"),
    "tools of text": ({**GOOD_PAIR, "tools": ["add"]}, "'tools' is list, expected a list of objects"),
    "an id out of range": ({**TWO_SIDES, "better_response_id": 2}, "'better_response_id' is 2, expected 0 or 1"),
    "a preference out of range": (
        {"instruction": "p", "output_1": "a", "output_2": "b", "preference": 3}, "'preference' is 3, expected 1 or 2"),
    "an unknown winner": ({**TWO_SIDES, "winner": "me"}, "'winner' is 'me', expected response_0, response_1 or tie"),
    "no number": ({**TWO_SIDES, "better_response_id": "x"}, "'better_response_id' is str, expected a number"),
    "two responses without a prompt": (
        {"response_0": "a", "response_1": "b", "better_response_id": 1}, "no prompt; the record has"),
    "a pair of one": (
        {"prompt": "p", "responses": ["a"], "pairs": [[0, 1]]}, "'pairs' has [0, 1], expected two numbers"),
    "scores missing": ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "2 responses but 1 scores"),
    "scores of text": (
        {"prompt": "p", "responses": ["a", "b"], "scores": ["1", "good"]}, "'scores' has 'good', expected numbers"),
    "a best one out of range": (
        {"prompt": "p", "responses": ["a"], "chosen_idx": 3}, "'chosen_idx' is 3, but there are 1"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_that_names_file_and_line(tmp_path, mistake):
    record, told = MISTAKES[mistake]
    with pytest.raises(ValueError) as found:
        read(tmp_path, record)
    message = str(found.value)
    assert f"{tmp_path}/a.jsonl:1" in message and told in message and "\n" not in message


def test_forms_that_are_mixed_in_one_file_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match=rf"a\.jsonl:2 holds {TWO}, but .*a\.jsonl:1 holds {PAIRS}; put records of one form"
    ):
        read(tmp_path, GOOD_PAIR, {**TWO_SIDES, "winner": "tie"})


def test_a_bad_label_is_named(tmp_path):
    with pytest.raises(ValueError, match="'label' is 3, expected true or false"):
        read(tmp_path, {"prompt": "p", "completion": "c", "label": 3}, reading=SUPERVISED)
