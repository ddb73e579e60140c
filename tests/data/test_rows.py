"""Rows belong to conversations, which a split keeps whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fed.data.rows import (
    Preference,
    are_few_conversations,
    first_human_turn,
    in_conversations,
    split_by_conversation,
    told_apart,
)


@pytest.mark.parametrize(
    "prompt, turn",
    [
        ("\n\nHuman: a b \n\nAssistant: c\n\nHuman: d\n\nAssistant:", "a b"),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant:", "a"),
        ("system\n\nHuman: a\n\nAssistant:", "a"),
        ("system\n\nAssistant: x\n\nHuman: a", "system"),
        (" no marker ", "no marker"),
        ("", ""),
    ],
)
def test_the_first_human_turn_is_the_conversation(prompt, turn):
    assert first_human_turn(prompt) == turn == Preference(prompt, "c", "r").conversation


def test_a_system_text_before_every_dialogue_does_not_make_them_one_conversation():
    texts = ["a", "b", "a\n\nAssistant: x\n\nHuman: y"]
    rows = [Preference(f"\n\nHuman: Be kind.\n\nAssistant: Yes.\n\nHuman: {text}", "c", "r") for text in texts]
    assert {row.conversation for row in rows} == {"Be kind."}
    first, second, longer = (row.conversation for row in told_apart(rows))
    assert len({first, second}) == 2 and longer == first


@pytest.mark.parametrize("turns", [("a", "b"), ("a", "a")])
def test_rows_that_differ_in_their_first_turn_or_nowhere_keep_their_conversations(turns):
    rows = [Preference(f"\n\nHuman: {turn}\n\nAssistant:", "c", "r") for turn in turns]
    assert told_apart(rows) == rows


def dialogues(systems: int, count: int) -> list[Preference]:
    turns = (f"\n\nHuman: {i % systems}\n\nAssistant: Yes.\n\nHuman: {i}\n\nAssistant:" for i in range(count))
    return [Preference(prompt, "c", "r") for prompt in turns]


def test_few_first_turns_of_many_rows_are_noticed_unless_conversations_are_given():
    """Of four system texts none stands before all dialogues, so nothing tells these apart."""
    rows = dialogues(4, 40)
    assert told_apart(rows) == rows and are_few_conversations(rows)
    assert not are_few_conversations(dialogues(5, 40)) and not are_few_conversations(told_apart(dialogues(1, 40)))
    given = [Preference("p", "c", "r", conversation="given")] * 40
    assert not are_few_conversations(given) and in_conversations(rows) == "40 pairs in 4 conversations"


def test_a_given_conversation_is_kept():
    rows = [Preference(f"\n\nHuman: s\n\nHuman: {i}", "c", "r", conversation="given") for i in range(2)]
    assert told_apart(rows) == rows


def test_a_preference_refuses_an_unknown_truncation():
    with pytest.raises(ValueError, match="expected keep_end or keep_start"):
        Preference("p", "c", "r", truncation="middle")


conversations = st.lists(st.integers(0, 8), max_size=40)


@settings(max_examples=50, deadline=None)
@given(keys=conversations, fraction=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_split_keeps_every_row_once_and_conversations_whole(keys, fraction, seed):
    rows = [Preference(f"p{key}", f"c{index}", "r") for index, key in enumerate(keys)]
    first, second = split_by_conversation(rows, fraction, seed)
    assert sorted(first + second, key=rows.index) == rows
    assert not {row.prompt for row in first} & {row.prompt for row in second}
    if len(set(keys)) > 1 and 0 < fraction < 1:
        assert first and second
    largest = max(map(keys.count, keys), default=0)
    assert abs(len(first) - fraction * len(rows)) <= largest


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    rows = [Preference(f"p{index}", "c", "r") for index in range(50)]
    first, _ = split_by_conversation(rows, 0.3, seed=1)
    assert len(first) == 15
    assert {*first} == {*split_by_conversation(rows[::-1], 0.3, seed=1)[0]}
    assert {*first} != {*split_by_conversation(rows, 0.3, seed=2)[0]}


def test_a_split_refuses_a_fraction_beyond_1():
    with pytest.raises(ValueError, match=r"fraction is 1\.5"):
        split_by_conversation([], 1.5, 0)
