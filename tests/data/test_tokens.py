import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fed.data.order import BatchOrder, by_length
from fed.data.rows import Preference
from fed.data.tokens import Example, tokenize, truncate
from fed.model.demo import END_OF_TEXT, demo_tokenizer
from support.pairs import examples

TOKENIZER = demo_tokenizer()  # one token per byte, so lengths can be counted in the text
END = TOKENIZER.eos_token_id


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER(text)["input_ids"])


def tokens(*rows: Preference, max_length: int = 20, max_prompt_length: int = 8) -> list[Example]:
    return tokenize(rows, TOKENIZER, max_length=max_length, max_prompt_length=max_prompt_length)


def token(row: Preference) -> Example:
    return tokens(row)[0]


# S1.9: the four truncation fixtures; 20 tokens at most, prompts of 8 if they must be cut


def test_a_pair_that_fits_is_left_alone_even_with_a_prompt_above_max_prompt_length():
    """12 + max(7, 3) + 1 for end-of-text = 20."""
    example = token(Preference("abcdefghijkl", "mnopqrs", "tuv"))
    assert example == Example(ids("abcdefghijkl"), (*ids("mnopqrs"), END), (*ids("tuv"), END))
    assert example.length == 20


def test_a_long_prompt_keeps_its_end():
    """12 + 8 + 1 = 21 is one too many, so the prompt's last 8 stay; 8 + 9 fit."""
    example = token(Preference("abcdefghijkl", "mnopqrst", "u", truncation="keep_end"))
    assert example == Example(ids("efghijkl"), (*ids("mnopqrst"), END), (*ids("u"), END))


def test_a_long_prompt_keeps_its_start_where_its_row_says_so():
    example = token(Preference("abcdefghijkl", "u", "mnopqrst", truncation="keep_start"))
    assert example == Example(ids("abcdefgh"), (*ids("u"), END), (*ids("mnopqrst"), END))


def test_responses_that_are_still_too_long_are_cut_and_keep_their_end_of_text():
    """8 + 14 + 1 = 23: responses get 20 - 8 = 12 tokens, 11 of text and the end; the short one is untouched."""
    example = token(Preference("abcdefghijkl", "0123456789ABCD", "xyz"))
    assert example == Example(ids("efghijkl"), (*ids("0123456789A"), END), (*ids("xyz"), END))
    assert example.length == 20


def test_a_short_prompt_is_kept_whole_while_responses_are_cut():
    """2 + 23 + 1 is too long; the response still gets no more than 20 - 8, as in the original code."""
    example = token(Preference("ab", "0" * 23, "1"))
    assert example == Example(ids("ab"), (*ids("0" * 11), END), (*ids("1"), END))


@settings(max_examples=50, deadline=None, database=None)
@given(
    sizes=st.tuples(st.integers(1, 60), st.integers(0, 60), st.integers(0, 60)),
    keep=st.sampled_from(["keep_end", "keep_start"]),
    limits=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_what_is_kept_fits_and_is_a_start_or_an_end(sizes, keep, limits):
    max_prompt_length, max_length = limits[0], sum(limits)
    prompt = list(range(sizes[0]))
    responses = [[*range(100, 100 + size), END] for size in sizes[1:]]
    example = truncate(prompt, *responses, keep, max_length, max_prompt_length)
    assert 1 <= example.length <= max_length
    if len(prompt) + max(map(len, responses)) <= max_length:
        assert example == Example(tuple(prompt), *map(tuple, responses))
    else:
        assert len(example.prompt) == min(len(prompt), max_prompt_length)
    kept = len(example.prompt)
    assert list(example.prompt) == (prompt[-kept:] if keep == "keep_end" else prompt[:kept])
    for response, found in zip(responses, (example.chosen, example.rejected), strict=True):
        assert found[-1] == END and found.count(END) == 1
        assert list(found[:-1]) == response[: len(found) - 1]
        assert len(found) in (len(response), max_length - max_prompt_length)


@pytest.mark.parametrize("text", [END_OF_TEXT, f"so{END_OF_TEXT}", f"{END_OF_TEXT} and on", "<|im_end|>"])
def test_special_tokens_in_the_text_stay_text(text):
    tokenizer = demo_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    special = set(tokenizer.all_special_ids)
    assert special & set(tokenizer(text)["input_ids"]), "the tokenizer left to itself does recognise it"
    (example,) = tokenize([Preference(text, text, "x")], tokenizer, max_length=99, max_prompt_length=49)
    assert not special & set(example.prompt)
    assert example.chosen[-1] == END and not special & set(example.chosen[:-1])
    assert tokenizer.decode(example.chosen[:-1]) == text == tokenizer.decode(example.prompt)


def test_a_tokenizer_that_adds_special_tokens_by_itself_is_not_let():
    from tokenizers.processors import TemplateProcessing

    tokenizer = demo_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END_OF_TEXT} $A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, END)]
    )
    assert tokenizer("a")["input_ids"] == [END, *ids("a"), END]
    (example,) = tokenize([Preference("p", "c", "r")], tokenizer, max_length=9, max_prompt_length=4)
    assert example == Example(ids("p"), (*ids("c"), END), (*ids("r"), END))


def test_a_prompt_without_tokens_is_refused_naming_the_row():
    rows = [Preference("p", "c", "r"), Preference("", "the answer", "r")]
    with pytest.raises(ValueError, match=r"row 1 has the prompt '', which is no token.*chosen: 'the answer'"):
        tokens(*rows)


@pytest.mark.parametrize("max_prompt_length", [0, -1, 20, 21])
def test_lengths_that_leave_nothing_for_prompt_or_response_are_refused(max_prompt_length):
    with pytest.raises(ValueError, match=f"max_prompt_length={max_prompt_length} must be at least 1 and below"):
        tokens(Preference("p", "c", "r"), max_prompt_length=max_prompt_length)


def test_a_token_id_is_one_object_in_whatever_texts_it_stands():
    """Python makes an object of 28 bytes of each number above 256 that a tokenizer returns."""

    class Large:
        eos_token_id = 0

        def __call__(self, text, **kwargs):
            return {"input_ids": [[1000 + ord(character) for character in one] for one in text]}

    first, second = (
        tokenize([Preference("ab", "b", "a")], Large(), max_length=9, max_prompt_length=4)[0] for _ in range(2)
    )
    assert first.prompt == (1097, 1098) and first.prompt[1] is first.chosen[0] is second.prompt[1]


def test_no_rows_are_no_examples():
    assert tokens() == []


def order(**changes: int) -> BatchOrder:
    return BatchOrder(**{"num_examples": 10, "batch_size": 4, "seed": 0, "client_id": 0, **changes})


def listed(order: BatchOrder, first: int, count: int) -> list[list[int]]:
    return [batch.tolist() for batch in order.batches(first, count)]


def test_eight_pairs_in_batches_of_sixteen_are_one_partial_batch_per_epoch():
    small = order(num_examples=8, batch_size=16)
    assert [sorted(batch) for batch in listed(small, 0, 3)] == [list(range(8))] * 3


@pytest.mark.parametrize(("num_examples", "batch_size", "per_epoch"), [(10, 4, 3), (8, 4, 2), (1, 4, 1), (7, 1, 7)])
def test_every_epoch_covers_every_example_once(num_examples, batch_size, per_epoch):
    batches = order(num_examples=num_examples, batch_size=batch_size)
    for epoch in range(3):
        found = listed(batches, epoch * per_epoch, per_epoch)
        assert found == [batch.tolist() for batch in batches.epochs(epoch * per_epoch, 1)]
        assert all(len(batch) == batch_size for batch in found[:-1])
        assert sorted(index for batch in found for index in batch) == list(range(num_examples))


def test_any_position_can_be_asked_for():
    assert listed(order(), 0, 7) == listed(order(), 0, 3) + listed(order(), 3, 4)
    assert [listed(order(), position, 1)[0] for position in range(7)] == listed(order(), 0, 7)
    assert listed(order(), 5, 0) == []


def test_the_order_depends_on_seed_client_and_epoch_and_on_nothing_else():
    before = listed(order(), 0, 6)
    np.random.seed(99)
    torch.manual_seed(99)
    assert listed(order(), 0, 6) == before
    assert before[:3] != before[3:], "another epoch"
    assert before != listed(order(seed=1), 0, 6)
    assert before != listed(order(client_id=1), 0, 6)


def test_the_batch_size_cuts_the_same_permutation_elsewhere():
    by_four, by_five = (
        [i for batch in listed(order(batch_size=size), 0, epochs) for i in batch] for size, epochs in ((4, 3), (5, 2))
    )
    assert by_four == by_five


TOKENS = [5, 1, 9, 3, 3, 7, 2, 30, 4, 6]


def budgeted(**changes: object) -> BatchOrder:
    return replace(order(), tokens=TOKENS, max_tokens=12, **changes)


def test_a_token_budget_takes_the_pairs_of_the_same_permutation_until_the_next_would_not_fit():
    permutation = [i for batch in listed(order(), 0, 3) for i in batch]
    batches = listed(budgeted(), 0, len(budgeted().epoch(0)))
    assert [i for batch in batches for i in batch] == permutation
    for batch, after in itertools.pairwise(batches):
        held = sum(TOKENS[i] for i in batch)
        assert held <= 12 or batch == [7], "a pair that alone exceeds the budget has a batch of its own"
        assert held + TOKENS[after[0]] > 12


def test_padding_counts_towards_the_token_budget():
    for batch in budgeted(padded=True).epoch(0):
        assert len(batch) * max(TOKENS[i] for i in batch) <= 12 or len(batch) == 1
    assert len(budgeted(padded=True).epoch(0)) > len(budgeted().epoch(0))


def test_any_position_of_a_budgeted_order_can_be_asked_for():
    whole = listed(budgeted(), 0, 15)
    assert [listed(budgeted(), position, 1)[0] for position in range(15)] == whole
    first_epoch = len(budgeted().epoch(0))
    assert first_epoch < 15
    assert [b.tolist() for b in budgeted().epochs(first_epoch, 2)] == listed(
        budgeted(), first_epoch, len(budgeted().epoch(1)) + len(budgeted().epoch(2))
    )


@pytest.mark.parametrize("batch_size", [1, 4, 23, 99])
def test_by_length_covers_all_in_full_batches_longest_first(batch_size):
    lengths = [pair.length for pair in examples(23)]
    batches = by_length(lengths, batch_size)
    assert Counter(i for batch in batches for i in batch) == Counter(range(23))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert [lengths[i] for batch in batches for i in batch] == sorted(lengths, reverse=True)


@pytest.mark.parametrize("batches", [order(), budgeted()], ids=["by number", "by tokens"])
def test_stretches_of_the_order_follow_each_other_and_hold_as_many_examples_as_asked(batches):
    """Epochs hold 10 examples and stretches 7; whole epochs are cut as `epochs` cuts them."""
    permutations = [i for epoch in range(3) for batch in batches.epoch(epoch) for i in batch.tolist()]
    stretches = [batches.stretch(first, 7) for first in (0, 7, 14, 21)]
    assert [i for stretch in stretches for batch in stretch for i in batch] == permutations[:28]
    assert [sum(map(len, stretch)) for stretch in stretches] == [7, 7, 7, 7]
    whole = [batch.tolist() for batch in batches.stretch(10, 20)]
    assert whole == [batch.tolist() for epoch in (1, 2) for batch in batches.epoch(epoch)]
    assert batches.stretch(5, 0) == []


def test_by_length_of_nothing_is_nothing():
    assert by_length([], 4) == []
