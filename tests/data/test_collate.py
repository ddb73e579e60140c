import pytest
import torch

from fed.data.collate import Layout, Segment, collate, num_tokens
from fed.data.examples import Example, PairLogps

PAIRS = [Example((1, 2), (3, 9), (4, 9)), Example((5,), (9,), (6, 7, 9))]
PACKED, SHARED = Layout(prefix_sharing=False), Layout()


def test_a_padded_batch_by_hand():
    """The width is 3: end-of-text tokens (9) predict nothing and stay out. Rows count from the last prompt token."""
    batch = collate(PAIRS)
    assert batch.input_ids.tolist() == [[1, 2, 3], [1, 2, 4], [5, 0, 0], [5, 6, 7]]
    assert batch.rows.tolist() == [1, 2, 4, 5, 6, 9, 10, 11]
    assert batch.targets.tolist() == [3, 9, 4, 9, 9, 6, 7, 9]
    assert batch.sizes == (2, 2, 1, 3)
    assert batch.position_ids is None and batch.segments is None


def test_a_packed_batch_by_hand():
    batch = collate(PAIRS, layout=PACKED)
    assert batch.input_ids.tolist() == [[1, 2, 3, 1, 2, 4, 5, 5, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 2, 0, 0, 1, 2]]
    assert batch.segments.lengths == (Segment(2, 1), Segment(2, 1), Segment(1, 0), Segment(1, 2))
    assert batch.rows.tolist() == [1, 2, 4, 5, 6, 7, 8, 9]
    assert batch.targets.tolist() == collate(PAIRS).targets.tolist() and batch.sizes == collate(PAIRS).sizes


def test_a_shared_batch_by_hand():
    """The last prompt token (places 1 and 4) predicts the first token of both responses: its row comes twice."""
    batch = collate(PAIRS, layout=SHARED)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 2, 0, 1, 2]]
    assert batch.segments.lengths == (Segment(2, 1, 1), Segment(1, 0, 2))
    assert batch.segments.longest == 3
    assert batch.rows.tolist() == [1, 2, 1, 3, 4, 4, 5, 6]
    assert batch.targets.tolist() == collate(PAIRS).targets.tolist() and batch.sizes == collate(PAIRS).sizes


def test_what_the_rejected_response_sees_by_hand():
    """The prompt has 2 tokens, chosen 1 of its own, rejected 2: each of these sees the prompt and those before it."""
    (mask,) = collate([Example((1, 2), (3, 9), (4, 5, 9))], layout=SHARED).segments.masks
    assert mask.tolist() == [[True, True, True, False], [True, True, True, True]]


@pytest.mark.parametrize("layout", [Layout(packing=False), PACKED, SHARED], ids=["padded", "packed", "shared"])
def test_a_supervised_batch_holds_the_chosen_side_only(layout):
    batch = collate([Example((1, 2), (3, 9), (4, 5, 6, 7, 9))], paired=False, layout=layout)
    assert batch.input_ids.tolist() == [[1, 2, 3]]
    assert batch.rows.tolist() == [1, 2]
    assert batch.sizes == (2,)


def test_tokens_are_counted_as_the_layout_holds_them():
    """The prompt has 4 tokens, the responses 3 and 6 with end-of-text, so 2 and 5 of their own."""
    pair = Example((1,) * 4, (2,) * 3, (3,) * 6)
    assert num_tokens([pair], SHARED)[0] == 4 + 2 + 5 == collate([pair], layout=SHARED).input_ids.numel()
    assert num_tokens([pair], PACKED)[0] == 8 + 2 + 5 == collate([pair], layout=PACKED).input_ids.numel()
    assert num_tokens([pair], Layout(packing=False))[0] == 2 * 9 == collate([pair]).input_ids.numel()
    assert num_tokens([pair], SHARED, paired=False)[0] == 6


def test_columns_travel_with_their_pairs_and_carry_the_lengths():
    pairs = [
        Example((1,), (2, 9), (9,), reference=PairLogps(-1.5, -2.5), anchor=PairLogps(-0.5, -0.25)),
        Example((1,), (9,), (3, 9), reference=PairLogps(-3.5, -4.5)),
    ]
    batch = collate(pairs)
    assert batch.reference.chosen.tolist() == [-1.5, -3.5]
    assert batch.reference.rejected.tolist() == [-2.5, -4.5]
    assert batch.reference.chosen_tokens.tolist() == [2, 1]
    assert batch.reference.rejected_tokens.tolist() == [1, 2]
    assert batch.anchor is None, "a column that some pairs lack is no column"
    assert collate(pairs[:1]).anchor.chosen.tolist() == [-0.5]
    supervised = collate(pairs, paired=False)
    assert supervised.reference.chosen.tolist() == [-1.5, -3.5] and supervised.reference.rejected is None


def test_log_probs_of_later_pairs_get_the_lengths_of_those_pairs():
    logps = collate(PAIRS).as_logps(torch.tensor([-1.0, -2.0]), first_pair=1)
    assert logps.chosen.tolist() == [-1.0] and logps.rejected.tolist() == [-2.0]
    assert logps.chosen_tokens.tolist() == [1.0] and logps.rejected_tokens.tolist() == [3.0]
