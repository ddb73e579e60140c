"""The page's verdict and its forest plot, of differences that are given."""

import math
from dataclasses import fields

import pytest

from fed.reports.page_differences import NARROWEST, forest, verdict
from fed.reports.statistics import Difference, Mean
from fed.reports.tables import Row
from support.foreign_runs import EVIL


def row(name: str, accuracy: float, seeds: tuple[int, ...] = (0, 1)) -> Row:
    """Return a method's results; only its accuracy and its seeds matter here."""
    known = {"method": name, "seeds": seeds, "accuracy": Mean(accuracy, 0.01)}
    return Row(**{field.name: known.get(field.name) for field in fields(Row)})


def between(low: float, high: float) -> Difference:
    """Return a difference in the middle of its interval."""
    return Difference((low + high) / 2, low, high, 200, 2)


def test_the_verdict_names_the_best_method_and_whom_it_surpasses():
    rows = [row("a", 0.5), row("b", 0.75), row("c", 0.25), row("d", 0.74)]
    pairs = {
        ("a", "b"): between(-0.3, -0.2),
        ("a", "c"): between(0.2, 0.3),
        ("b", "c"): between(0.4, 0.6),
        ("b", "d"): between(-0.05, 0.07),
    }
    assert verdict(rows, pairs) == (
        "b has the highest accuracy on the test pairs, 0.750 (2 seeds): it is better than a and c; "
        "no difference from d is shown."
    )


def test_the_verdict_claims_nothing_that_no_interval_shows():
    rows = [row("a", 0.75, seeds=(0,)), row("b", 0.5, seeds=(0,))]
    assert verdict(rows, {("a", "b"): between(-0.01, 0.51)}) == (
        "a has the highest accuracy on the test pairs, 0.750 (1 seed), but no difference from b is shown."
    )


def test_methods_of_one_accuracy_are_all_named():
    same = {("a", "b"): between(-0.1, 0.1), ("a", "c"): between(-0.1, 0.1), ("b", "c"): between(-0.1, 0.1)}
    assert verdict([row("a", 1.0), row("b", 1.0), row("c", 1.0)], same) == (
        "a, b and c have the same accuracy on the test pairs, 1.000 (2 seeds)."
    )
    rows = [row("a", 0.5), row("b", 0.75), row("c", 0.75 + 1e-12, seeds=(0, 1, 2)), row("d", 0.7)]
    pairs = {
        ("a", "b"): between(-0.3, -0.2),
        ("a", "c"): between(-0.3, -0.2),
        ("b", "c"): between(-0.1, 0.1),
        ("b", "d"): between(0.01, 0.09),
        ("c", "d"): between(-0.01, 0.11),
    }
    assert verdict(rows, pairs) == (
        "b and c have the same highest accuracy on the test pairs, 0.750 (2 or 3 seeds): they are all better than a; "
        "no difference of each of them from d is shown."
    )
    many = [row(f"m{k}", 0.5) for k in range(5)]
    assert verdict(many, {}).startswith("5 methods have the same accuracy")


def test_the_verdict_says_where_seeds_are_too_few():
    """As the table does: the pairs of these seeds alone exclude 0."""
    rows = [row("a", 0.75), row("b", 0.5), row("c", 0.74)]
    few = Difference(0.25, -0.5, 1.0, 200, 2, of_pairs=(0.2, 0.3))
    assert verdict(rows[:2], {("a", "b"): few}) == (
        "a has the highest accuracy on the test pairs, 0.750 (2 seeds), but there are too few seeds to say whether it "
        "is better than b."
    )
    assert verdict(rows, {("a", "b"): few, ("a", "c"): between(-0.1, 0.12)}).endswith(
        "(2 seeds), but no difference from c is shown; there are too few seeds to say whether it is better than b."
    )


def test_the_verdict_hides_no_pair_that_contradicts_the_means():
    """Means over other seeds may rank two methods otherwise than the seeds that both have."""
    said = verdict([row("a", 0.75), row("b", 0.5)], {("a", "b"): between(-0.3, -0.1)})
    assert said.endswith("; b did better in the seeds and rounds that both have.")


def test_the_verdict_of_many_methods_stays_a_sentence():
    rows = [row(f"m{k}", 0.9 - 0.1 * k) for k in range(7)]
    pairs = {("m0", f"m{k}"): between(0.1, 0.2) for k in range(1, 7)}
    assert verdict(rows, pairs).endswith(": it is better than 6 other methods.")


def test_a_method_that_diverged_is_not_the_best():
    rows = [row("a", math.nan), row("b", 0.5)]
    assert verdict(rows, {("a", "b"): between(-0.6, -0.4)}).startswith("b has the highest accuracy")
    assert verdict(rows[:1], {}) == "No method ended with a finite accuracy."
    assert verdict(rows[1:], {}).endswith("0.500 (2 seeds); there is no other method.")


def test_a_forest_has_a_row_for_each_difference_with_its_own_interval():
    pairs = {("a", "b"): between(-0.25, 0.75), (EVIL, "c"): Difference(0.5, 0.25, 1.0, 200, 2)}
    (plot,) = forest(pairs)
    shown, level = plot.figure["data"]
    assert (shown["y"], shown["x"]) == ([1], [0.5])
    assert (shown["error_x"]["arrayminus"], shown["error_x"]["array"]) == ([0.25], [0.5])
    assert (level["y"], level["x"]) == ([0], [0.25])
    assert (level["error_x"]["arrayminus"], level["error_x"]["array"]) == ([0.5], [0.5])
    assert shown["marker"]["color"] != level["marker"]["color"]
    texts = [name["text"] for name in plot.figure["layout"]["annotations"]]
    assert texts[0] == "a − b" and "<" not in texts[1]  # noqa: RUF001
    assert "1 of 2 exclude 0" in plot.description


@pytest.mark.parametrize("ends", [(0.3, 0.5), (-0.5, -0.3), (-0.0001, 0.0002)])
def test_a_forest_always_shows_zero_and_does_not_enlarge_tiny_differences(ends: tuple[float, float]):
    low, high = forest({("a", "b"): between(*ends)})[0].figure["layout"]["xaxis"]["range"]
    assert low < min(ends) and max(ends) < high
    assert low <= -NARROWEST and high >= NARROWEST


def test_one_method_has_no_forest():
    assert forest({}) == []
