"""One metric of one method over the rounds, summed up over its seeds.

Shapes: R evaluated rounds.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fed.reports.runs import Method, Point
from fed.reports.statistics import Floats, mean_and_se
from fed.reports.style import PANELS


class Clock(NamedTuple):
    """The unit of wall-clock time."""

    unit: str
    seconds: float


# Each unit, and up to how many seconds it is used.
CLOCKS = ((Clock("s", 1.0), 300.0), (Clock("min", 60.0), 3 * 3600.0), (Clock("h", 3600.0), np.inf))


class Series(NamedTuple):
    """One metric of one method, each of shape (R,); NaN where unknown."""

    rounds: Floats
    pairs: Floats  # this and the following are means over seeds
    seconds: Floats
    values: Floats
    errors: Floats  # standard error over seeds
    lows: Floats  # ends of the band: an error below the value, or of one seed's accuracy the end of Wilson's interval
    highs: Floats
    spreads: Floats  # mode=local: standard deviation over clients


def series(method: Method, metric: str) -> Series:
    """Return the metric after each round in which all runs of the method were evaluated.

    A round in which some run's value was not finite is left out, and so is accuracy at round 0.
    """
    kept = [
        (server_round, points)
        for server_round, points in method.by_round()
        # Before training all pairs tie, and ties count as wrong: that 0 measures nothing and would flatten the rest.
        if all(metric in point.metrics for point in points) and not (metric == "accuracy" and server_round == 0)
    ]
    columns = [(server_round, *_summed_up(points, metric)) for server_round, points in kept]
    return Series(*np.array(columns, dtype=np.float64).reshape(-1, len(Series._fields)).T)


def all_series(methods: Sequence[Method]) -> dict[str, dict[str, Series]]:
    """Return the series of each method, by its name, for each metric that some method measured."""
    found = {metric: {method.name: series(method, metric) for method in methods} for metric in PANELS}
    return {metric: drawn for metric, drawn in found.items() if any(one.rounds.size for one in drawn.values())}


def clock(found: Mapping[str, Mapping[str, Series]]) -> Clock | None:
    """Return the unit that suits the longest time, or None if no time is known."""
    longest = _longest(one.seconds for drawn in found.values() for one in drawn.values())
    return None if longest is None else next(clock for clock, most in CLOCKS if longest < most)


def _longest(times: Iterable[Floats]) -> float | None:
    known = [float(seconds[np.isfinite(seconds)].max()) for seconds in times if np.isfinite(seconds).any()]
    return max(known, default=None)


def _summed_up(points: Sequence[Point], metric: str) -> tuple[float, ...]:
    """Return pairs, seconds, value, error, both ends of the band and spread at one round."""
    value, error = mean_and_se([point.metrics[metric] for point in points])
    low, high = value - error, value + error
    if not error > 0 and f"{metric}_low" in points[0].metrics:  # one seed, or seeds of one accuracy
        error, low, high = np.nan, points[0].metrics[f"{metric}_low"], points[0].metrics[f"{metric}_high"]
    spread = np.mean([point.spread.get(metric, np.nan) for point in points])
    # With dtype float an unknown time, None, becomes NaN.
    seconds = np.mean(np.array([point.seconds for point in points], dtype=np.float64))
    return float(np.mean([point.pairs for point in points])), float(seconds), value, error, low, high, float(spread)
