"""Batches of an endless, seeded order, from any position."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from fed.data.order import BatchOrder, by_length
from support.pairs import examples


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
