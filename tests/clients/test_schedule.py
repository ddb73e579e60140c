"""The pairs of a client's optimizer steps, round after round."""

from clients.schedule import Schedule
from clients.settings import RoundSettings
from clients.state import ClientState
from fed.data.collate import PADDED
from support.federations import dpo_loss
from support.local_settings import local_settings
from support.pairs import examples


def schedule(**changes) -> Schedule:
    return Schedule(local_settings(loss=dpo_loss, **changes), PADDED)


def trained(steps) -> list[int]:
    return [int(i) for indices in steps for i in indices]


def test_num_pairs_counts_what_the_steps_of_each_round_take():
    """Ten pairs make batches of 4, 4 and 2; two steps a round: 4 + 4, 2 + 4, 4 + 2 pairs, in place of whole epochs."""
    pairs = examples(10)
    assert schedule().num_pairs(pairs, 0, 2) == [10, 10]
    assert schedule(local_epochs=3).num_pairs(pairs, 0) == [30]
    rounds, state = schedule(local_steps=2), ClientState()
    assert rounds.num_pairs(pairs, 0, 3) == [8, 6, 6]
    for expected in (8, 6, 6):
        steps = rounds.steps(pairs, 0, state, RoundSettings())
        assert len(trained(steps)) == expected
        state.batches += len(steps)


def test_without_reshuffling_every_round_takes_the_same_pairs():
    fixed = schedule(local_steps=2, reshuffle=False)
    assert fixed.num_pairs(examples(10), 0, 3) == [8, 8, 8]
    first, later = (fixed.steps(examples(10), 0, ClientState(batches=b), RoundSettings()) for b in (0, 6))
    assert trained(first) == trained(later)


def test_a_round_with_a_number_of_pairs_continues_where_the_last_one_ended():
    """Rounds of 6 and 8 pairs of ten: the first 14 of the endless order, whatever the epochs and steps say."""
    rounds, pairs = schedule(local_epochs=5), examples(10)
    first = trained(rounds.steps(pairs, 0, ClientState(), RoundSettings(pairs=6)))
    second = trained(rounds.steps(pairs, 0, ClientState(examples=6), RoundSettings(pairs=8)))
    both = trained(rounds.steps(pairs, 0, ClientState(), RoundSettings(pairs=14)))
    assert first + second == both and (len(first), len(second)) == (6, 8)
    assert sorted(both[:10]) == list(range(10))
