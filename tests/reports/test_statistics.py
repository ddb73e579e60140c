import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from fed.intervals import NORMAL, student, wilson
from fed.reports.runs import Method, Run
from fed.reports.statistics import (
    Difference,
    accuracy,
    difference,
    differences,
    mean_and_se,
    paired_difference,
    verdicts,
)
from support.fabricated_runs import fabricate, with_margins


def names(count: int, *, seed: int | str = "") -> list[str]:
    """So many conversations of one pair each."""
    return [f"{seed}-{i}" for i in range(count)]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Differences as two methods have them that disagree on every fifth pair, each being right as often."""
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], shape, p=[0.1, 0.8, 0.1])


def width(found: Difference) -> float:
    return found.high - found.low


def test_the_standard_error_is_that_of_the_mean_with_n_minus_1():
    """The values are 1, 2, 6: squared deviations from 3 are 4, 1, 9, so sd = sqrt(14 / 2) and se = sqrt(7 / 3)."""
    assert mean_and_se([1.0, 2.0, 6.0]) == pytest.approx((3.0, math.sqrt(7 / 3)))


def test_an_accuracy_of_one_seed_has_wilsons_interval():
    """28 of 32 right: Wilson's interval by hand is [0.719, 0.950]; ties at 0 and 1 have a width too."""
    assert str(accuracy([28 / 32], 32)) == "0.875 [0.719, 0.950]"
    assert str(accuracy([1.0], 32)) == "1.000 [0.893, 1.000]"
    assert str(accuracy([0.0], 32)) == "0.000 [0.000, 0.107]"
    assert wilson(1 / 3, 3) == (pytest.approx(0.0615, abs=1e-4), pytest.approx(0.7923, abs=1e-4))
    assert wilson(0.0, 32) == (0.0, pytest.approx(NORMAL**2 / (32 + NORMAL**2)))


@pytest.mark.parametrize("count", [*range(1, 40), 80, 512, 4096])
def test_wilsons_interval_holds_the_share_and_ends_exactly_at_0_and_1(count: int):
    """Rounding left the interval of 0 of 80 at 3.5e-18, and that of 512 of 512 at 1 - 1.1e-16."""
    assert wilson(0.0, count)[0] == 0.0 and wilson(1.0, count)[1] == 1.0
    for right in range(0, count + 1, max(1, count // 40)):
        low, high = wilson(right / count, count)
        assert 0.0 <= low <= right / count <= high <= 1.0


def test_seeds_of_one_accuracy_have_no_standard_error_of_0():
    assert str(accuracy([1.0, 1.0, 1.0], 32)) == "1.000 [0.893, 1.000]"
    assert str(accuracy([0.99, 0.99, 0.99], 100)) == "0.990 [0.946, 0.998]"  # rounding gives them a sd of 1.4e-16
    assert str(accuracy([0.6, 0.8], 32)) == "0.700 ± 0.100"


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (33, 2.0345), (512, 1.9646)],
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, quantile: float):
    assert student(freedom) == pytest.approx(quantile, rel=0.002)


def test_one_value_has_no_standard_error():
    assert mean_and_se([0.25]).mean == 0.25
    assert math.isnan(mean_and_se([0.25]).se)


def test_methods_that_agree_on_every_pair_may_differ_on_others():
    """32 pairs and the two invented ones: 1/n^2 (1 + 1) (32/34)^2 = 2/34^2, and t with 33 degrees is 2.0345."""
    found = paired_difference([np.zeros(32)], [names(32)])
    half = 2.0345 * math.sqrt(2) / 34
    assert (found.mean, found.low, found.high) == (0.0, pytest.approx(-half, rel=1e-4), pytest.approx(half, rel=1e-4))
    assert 0.06 < found.high < 0.09
    assert not found.shown and found.verdict("a", "b") == "no difference shown: 0.000 [-0.085, 0.085]"


def test_an_interval_ends_where_a_difference_can():
    """Seeds at 0.9 and -0.3 say next to nothing, but no difference of accuracies is above 1 or below -1."""
    apart = paired_difference([np.full(8, 0.9), np.full(8, -0.3)], [names(8, seed=s) for s in range(2)])
    assert (apart.low, apart.high) == (-1.0, 1.0)
    every = paired_difference([np.ones(8)], [names(8)])
    assert every.high == 1.0 and every.low < 1.0
    alone = paired_difference([np.array([1.0])], [["a"]])
    assert -1.0 <= alone.low < alone.mean == alone.high == 1.0


def test_single_pairs_have_the_interval_of_bonett_and_price():
    """With 10 and 3 of 60 pairs the paper has p12 = 11/62 and p21 = 4/62.

    Its interval is (p12 - p21) -+ 1.96 sqrt((p12 + p21 - (p12 - p21)^2) / 62); ours has Student's quantile for 1.96.
    """
    won = np.array([1.0] * 10 + [-1.0] * 3 + [0.0] * 47)
    p12, p21 = 11 / 62, 4 / 62
    error = math.sqrt((p12 + p21 - (p12 - p21) ** 2) / 62)
    found = paired_difference([won], [names(60)])
    middle, half = (found.high + found.low) / 2, (found.high - found.low) / 2
    assert found.mean == pytest.approx(7 / 60)
    assert middle == pytest.approx(p12 - p21)
    assert half == pytest.approx(1.9996 * error, rel=1e-4)  # t with 61 degrees of freedom


@pytest.mark.parametrize(("values", "quantile"), [((0.1, 0.2, 0.25), 4.303), ((0.0, 0.0, 0.0, 0.1), 3.182)])
def test_many_pairs_leave_seeds_the_interval_of_students_distribution(values: tuple[float, ...], quantile: float):
    """The mean of n numbers: t sd / sqrt(n) to either side, t = 4.303 with 2 and 3.182 with 3 degrees of freedom."""
    constant = [np.full(2000, value) for value in values]
    found = paired_difference(constant, [names(2000, seed=s) for s in range(len(values))])
    half = quantile * mean_and_se(values).se
    assert found.mean == pytest.approx(np.mean(values)) and found.num_pairs == 2000 * len(values)
    assert (found.high - found.mean, found.mean - found.low) == (pytest.approx(half, rel=0.01),) * 2


def test_seeds_that_differ_as_their_pairs_let_expect_add_nothing():
    """Means 0.01, 0.01 and 0.02 of 100 pairs, of which 17 or 18 go one way or the other: t s = 4.3 * 0.0033 = 0.014.

    The noise of the pairs alone is 1.96 * 0.042 / sqrt(3) = 0.047.
    """
    rng = np.random.default_rng(0)
    vectors = [rng.permutation([1.0] * (9 + k) + [-1.0] * 8 + [0.0] * (83 - k)) for k in (0, 0, 1)]
    found = paired_difference(vectors, [names(100, seed=s) for s in range(3)])
    assert (found.low, found.high) == pytest.approx(found.of_pairs)


def test_seeds_that_disagree_are_too_few_to_say():
    """Each of two seeds is above 0 by far, at 0.2 and 0.6, but t = 12.7 with one degree of freedom."""
    found = paired_difference([np.full(200, 0.2), np.full(200, 0.6)], [names(200, seed=s) for s in range(2)])
    assert found.of_pairs is not None and found.of_pairs[0] > 0.3 and found.low == -1.0
    said = found.verdict("a", "b")
    assert said.startswith("too few seeds to say: 0.400 [-1.000, 1.000]; for these 2 seeds alone [0.3")
    assert found.has_too_few_seeds and not found.shown
    nothing = paired_difference([noise(200) + 0.1, noise(200, seed=1) - 0.1], [names(200, seed=s) for s in range(2)])
    assert nothing.of_pairs is not None and nothing.of_pairs[0] < 0 < nothing.of_pairs[1]
    assert nothing.has_too_few_seeds, "an interval of [-1, 1] does not say that they hardly differ"
    agreeing = paired_difference([np.full(200, 0.4)] * 2, [names(200, seed=s) for s in range(2)])
    assert agreeing.verdict("a", "b").startswith("a is better than b by 0.400 [0.3")


def test_swapping_the_methods_turns_the_signs():
    vectors, conversations = list(noise(3, 40) + 0.1), [names(40, seed=s) for s in range(3)]
    there = paired_difference(vectors, conversations)
    back = paired_difference([-vector for vector in vectors], conversations)
    assert (back.mean, back.low, back.high) == pytest.approx((-there.mean, -there.high, -there.low))


def test_pairs_of_one_conversation_count_as_one_where_they_agree():
    """Each difference four times: as independent pairs they would halve the interval, sqrt(4) = 2."""
    vector = noise(200)
    once = paired_difference([vector], [names(200)])
    together = paired_difference([np.repeat(vector, 4)], [[name for name in names(200) for _ in range(4)]])
    apart = paired_difference([np.repeat(vector, 4)], [names(800)])
    assert (together.low, together.high) == pytest.approx((once.low, once.high))
    assert width(together) / width(apart) == pytest.approx(2, rel=0.02)


def test_seeds_with_the_same_test_pairs_do_not_make_them_more():
    """Four seeds that agree on the same pairs know no more of other pairs than one does."""
    vector = noise(200)
    one = paired_difference([vector], [names(200)])
    four = paired_difference([vector] * 4, [names(200)] * 4)
    assert (four.low, four.high) == pytest.approx((one.low, one.high))


def test_seeds_with_other_test_pairs_do():
    """Four seeds that agree, each on pairs of its own: half the interval."""
    vector = noise(200)
    one = paired_difference([vector], [names(200)])
    four = paired_difference([vector] * 4, [names(200, seed=s) for s in range(4)])
    assert width(four) / width(one) == pytest.approx(1 / 2, rel=0.02)


def test_a_conversation_weighs_as_many_pairs_as_it_has():
    """Three pairs of one conversation are right, one of another is wrong: (3 - 1) / 4."""
    found = paired_difference([np.array([1.0, 1, 1, -1])], [["long", "long", "long", "short"]])
    assert found.mean == 0.5
    assert (found.low, found.high) == (-1.0, 1.0)  # two conversations say nothing of others


def test_the_same_call_gives_the_same_numbers():
    vectors, conversations = list(noise(3, 64)), [names(64, seed=s) for s in range(3)]
    assert paired_difference(vectors, conversations) == paired_difference(vectors, conversations)


def test_the_better_method_is_named_first():
    assert Difference(0.012, 0.003, 0.021, 512, 1).verdict("fedpo", "fedavg") == (
        "fedpo is better than fedavg by 0.012 [0.003, 0.021]"
    )
    assert Difference(-0.012, -0.021, -0.003, 512, 1).verdict("fedpo", "fedavg") == (
        "fedavg is better than fedpo by 0.012 [0.003, 0.021]"
    )


def test_an_interval_that_holds_0_shows_nothing():
    found = Difference(0.004, -0.006, 0.015, 512, 1)
    assert not found.shown
    assert found.verdict("fedpo", "fedavg") == "no difference shown: 0.004 [-0.006, 0.015]"
    assert not Difference(0.004, 0.0, 0.015, 512, 1).shown


def test_verdicts_say_how_much_was_compared():
    found = {("a", "b"): Difference(0.1, -0.1, 0.2, 1536, 3), ("a", "c"): Difference(0.1, -0.1, 0.2, 512, 1)}
    assert verdicts(found) == [
        "a against b: no difference shown: 0.100 [-0.100, 0.200] (3 seeds, 1,536 pairs)",
        "a against c: no difference shown: 0.100 [-0.100, 0.200] (1 seed, 512 pairs)",
    ]


def test_seeds_of_as_many_pairs_are_not_summed_up():
    """They may all have the same pairs, which would be counted twice."""
    same = paired_difference([np.zeros(20)] * 2, [names(20)] * 2)
    assert verdicts({("a", "b"): same})[0].endswith("(2 seeds x 20 pairs)")
    other = paired_difference([np.zeros(20), np.zeros(19)], [names(20), names(19)])
    assert verdicts({("a", "b"): other})[0].endswith("(2 seeds, 39 pairs)")
    assert verdicts({("a", "b"): paired_difference([np.zeros(20)], [names(20)])})[0].endswith("(1 seed, 20 pairs)")


def method(
    name: str, folder: Path, margins: dict[int, list[list[float]]], *, mode: str, seeds: Sequence[int]
) -> Method:
    """Return runs with these margins on four test pairs."""
    made = [fabricate(folder / f"{name}-{seed}", mode=mode, seed=seed, num_pairs=4) for seed in seeds]
    return Method(name, [with_margins(run, margins) for run in made])


def test_a_pair_is_right_where_its_margin_is_above_0(tmp_path: Path):
    """Right are pairs 0, 1 and 3 against pair 0; a tie is wrong: (3 - 1) / 4."""
    a = method("a", tmp_path, {1: [[0.1, 2.0, 0.0, 1e-9]]}, mode="federated", seeds=[0])
    b = method("b", tmp_path, {1: [[0.1, -2.0, 0.0, 0.0]]}, mode="federated", seeds=[0])
    found = difference(a, b)
    assert (found.mean, found.num_pairs, found.num_seeds) == (0.5, 4, 1)
    assert difference(b, a).mean == -0.5


def test_of_clients_that_train_alone_a_pair_has_the_share_that_is_right(tmp_path: Path):
    """Shares 1, 1/2, 0 and 0 of two clients, mean 3/8, against 2/4."""
    local = method("local", tmp_path, {1: [[1, 1, -1, -1], [1, -1, -1, 0]]}, mode="local", seeds=[0])
    b = method("b", tmp_path, {1: [[1, -1, 1, -1]]}, mode="federated", seeds=[0])
    assert difference(local, b).mean == pytest.approx(3 / 8 - 2 / 4)


def test_the_last_round_that_all_have_is_compared(tmp_path: Path):
    right, wrong = [[1.0] * 4], [[-1.0] * 4]
    a = method("a", tmp_path, {0: wrong, 1: wrong, 2: right, 3: wrong}, mode="federated", seeds=[0, 1])
    b = method("b", tmp_path, {0: wrong, 1: right, 2: wrong}, mode="centralized", seeds=[0, 1])
    assert difference(a, b).mean == 1
    assert difference(a, b, server_round=1).mean == -1


def test_a_round_that_one_lacks_and_round_0_are_refused(tmp_path: Path):
    a = method("a", tmp_path, {0: [[0.0] * 4], 1: [[1.0] * 4], 2: [[1.0] * 4]}, mode="federated", seeds=[0])
    b = method("b", tmp_path, {0: [[0.0] * 4], 1: [[1.0] * 4]}, mode="federated", seeds=[0])
    c = method("c", tmp_path, {0: [[0.0] * 4]}, mode="federated", seeds=[0])
    with pytest.raises(ValueError, match="a and b lack margins of round 2; rounds that all their runs have: 1"):
        difference(a, b, server_round=2)
    with pytest.raises(ValueError, match=r"a and c lack margins of any round; .*: none"):
        difference(a, c)


def test_runs_are_matched_by_seed_and_others_left_out(tmp_path: Path):
    a = method("a", tmp_path, {1: [[1.0] * 4]}, mode="federated", seeds=[2, 0, 1])
    b = method("b", tmp_path, {1: [[-1.0] * 4]}, mode="federated", seeds=[1, 2, 7])
    found = difference(a, b)
    assert (found.mean, found.num_seeds, found.num_pairs) == (1.0, 2, 8)


def test_methods_without_a_common_seed_are_refused(tmp_path: Path):
    a = method("a", tmp_path, {1: [[1.0] * 4]}, mode="federated", seeds=[0])
    b = method("b", tmp_path, {1: [[1.0] * 4]}, mode="federated", seeds=[1])
    with pytest.raises(ValueError, match="a and b have no seed in common"):
        difference(a, b)


def test_runs_with_other_test_pairs_are_refused_by_name(tmp_path: Path):
    a = Method("a", [fabricate(tmp_path / "a-0", mode="federated", seed=0, num_pairs=4)])
    b = Method("b", [fabricate(tmp_path / "b-0", mode="federated", seed=0, num_pairs=5)])
    with pytest.raises(ValueError, match=r"a-0 and .*b-0 have the same seed but other test pairs"):
        difference(a, b)


def test_the_difference_is_that_of_the_curves_ends(tmp_path: Path):
    made = {name: [run(tmp_path, name, seed) for seed in range(3)] for name in ("federated", "centralized", "local")}
    methods = [Method(name, runs) for name, runs in made.items()]
    ends = {name: np.mean([run.points[-1].metrics["accuracy"] for run in runs]) for name, runs in made.items()}
    found = differences(methods)
    assert list(found) == [("federated", "centralized"), ("federated", "local"), ("centralized", "local")]
    for (a, b), one in found.items():
        assert one.mean == pytest.approx(ends[a] - ends[b])
        assert one.low < one.mean < one.high


def run(folder: Path, mode: str, seed: int) -> Run:
    return fabricate(folder / f"{mode}-{seed}", mode=mode, seed=seed, num_pairs=64)
