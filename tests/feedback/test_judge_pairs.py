"""The pairs that are judged, and what answers make of them."""

from typing import Any

import pytest

from fed.data.source import Reading
from feedback.judging import Opinion, agreed, by_mean
from feedback.preferences import pairs_of
from feedback.server_judge import judge_prompt
from load_data import load_file
from support.judged_files import good_or_bad, judged, responses

__all__ = ["judged"]


def test_the_mean_over_both_orders_cancels_a_preference_for_a_place() -> None:
    """It likes the first place, and b a little: in one order a, in the other b, and in the mean b."""
    opinions = [Opinion("ab", "a", "", 0.8), Opinion("ba", "b", "", 0.1)]
    assert agreed(opinions).winner == "tie"
    found = by_mean(opinions)
    assert found.winner == "b" and found.share == pytest.approx(0.45)
    assert by_mean([Opinion("ab", "a", "", 0.75), Opinion("ba", "b", "", 0.25)]).winner == "tie"
    lacking = by_mean([Opinion("ab", "a", "a"), Opinion("ba", "b", "", 0.1)])
    assert lacking.winner is None and lacking.problem == "an answer without probabilities"


def test_an_answer_is_read_where_it_names_one_response_only() -> None:
    read = judge_prompt("helpful").read
    for text in ("Response (a)", "**Response (a)**\n\nIt is short.", "Response a.", "Response (a) is more helpful"):
        assert read(text) == "a", text
    for text in ("Response (a) and Response (b) are equal", "Response about tea", "Response (a) is less helpful", ""):
        assert read(text) is None, text


def test_pairs_are_other_pairs_when_a_text_changes(judged: Any) -> None:
    """A job that was begun with other texts does not go on."""
    rows = [load_file("two.jsonl", reading=Reading(needs="responses")).rows]
    before = pairs_of(rows, "first").digest()
    responses("two.jsonl", lambda index, draw: good_or_bad(index, draw) + "!")
    after = pairs_of([load_file("two.jsonl", reading=Reading(needs="responses")).rows], "first").digest()
    assert (
        before != after == pairs_of([load_file("two.jsonl", reading=Reading(needs="responses")).rows], "all").digest()
    )


def test_two_files_are_compared_draw_by_draw(judged: Any) -> None:
    """One of them lacks a response, an empty one, which is left out and told."""
    responses("new.jsonl", lambda index, draw: "" if (index, draw) == (0, 0) else f"new {draw}", name="new")
    responses("old.jsonl", lambda index, draw: f"old {draw}", name="old")
    code, lines, out, _ = judged("new.jsonl", "old.jsonl", "judge=lexicon", "rule={new: 1}", "pairs=all")
    assert code == 0 and "new.jsonl: left out: 1 empty response" in out
    assert [(line["response_a"][-1], line["response_b"][-1]) for line in lines][:1] == [("1", "1")]
    assert all(line["response_a"][-1] == line["response_b"][-1] for line in lines) and len(lines) == 7
