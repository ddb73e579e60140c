"""Win rates of a federation: each client counts its own judgements, and nothing but counts leaves it.

Shapes: B bins.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import MetricRecordValues

from fed.intervals import NORMAL, wilson
from feedback.winrates import LEAST_RIDGE, Battle, Floats, Rate, fitted, length_term, logistic

SIDE = 512  # bins of lengths on each side of 0; differences of 0 have one of their own
FURTHEST = math.log1p(1e6)  # characters by which two responses differ at most; beyond that the last bin counts
RESULTS = (1.0, 0.5, 0.0)  # the values of a win, a tie and a loss, in the order in which they are counted

NAMES, LENGTHS, BINS = ("wins", "ties", "losses", "unjudged"), "win-lengths", "win-bins"  # in a message


@dataclass(frozen=True)
class WinCounts:
    """The judgements of one client or of several: how many there are of each kind, and no text.

    Attributes:
        wins: Judgements that a won.
        ties: Ties.
        losses: Judgements that b won.
        unjudged: Pairs without a judgement.
        lengths: Number, sum and sum of squares of the differences in length, (3,).
        bins: Judgements by difference in length and by result, (B, 3): win, tie, loss. Bins are equally wide in
            log(1 + characters), 2.7 % of a length.
    """

    wins: int
    ties: int
    losses: int
    unjudged: int
    lengths: tuple[float, float, float]
    bins: Floats

    def as_metrics(self) -> dict[str, MetricRecordValues]:
        """Return the counts as numbers and lists of numbers; of the bins only those that count something."""
        places, results = np.nonzero(self.bins)
        filled = [int(n) for one in zip(places, results, self.bins[places, results], strict=True) for n in one]
        return {**{name: getattr(self, name) for name in NAMES}, LENGTHS: list(self.lengths), BINS: filled}

    @classmethod
    def of_metrics(cls, metrics: Mapping[str, Any]) -> "WinCounts":
        """Return the counts that `as_metrics` has turned into numbers."""
        bins = np.zeros((2 * SIDE + 1, len(RESULTS)))
        places, results, counts = np.array(metrics[BINS], dtype=int).reshape(-1, 3).T
        bins[places, results] = counts
        wins, ties, losses, unjudged = (int(metrics[name]) for name in NAMES)
        number, total, squares = metrics[LENGTHS]
        return cls(wins, ties, losses, unjudged, (number, total, squares), bins)

    @property
    def judged(self) -> int:
        """The number of judgements."""
        return self.wins + self.ties + self.losses


def counts_of(found: Sequence[Battle], unjudged: int = 0) -> WinCounts:
    """Count judgements."""
    values = [battle.value for battle in found]
    longer = np.array([battle.longer for battle in found])
    bins = np.zeros((2 * SIDE + 1, len(RESULTS)))
    for battle in found:
        reach = math.log1p(abs(battle.longer)) / FURTHEST * SIDE
        place = min(math.ceil(reach), SIDE) * (1 if battle.longer > 0 else -1)
        bins[SIDE + place, RESULTS.index(battle.value)] += 1
    lengths = (float(len(longer)), float(longer.sum()), float((longer**2).sum()))
    wins, ties, losses = (values.count(result) for result in RESULTS)
    return WinCounts(wins, ties, losses, unjudged, lengths, bins)


def pooled(clients: Sequence[WinCounts]) -> WinCounts:
    """Return the counts of all clients together."""
    number, total, squares = (math.fsum(client.lengths[place] for client in clients) for place in range(3))
    bins = sum((client.bins for client in clients), np.zeros((2 * SIDE + 1, len(RESULTS))))
    wins, ties, losses, unjudged = (sum(getattr(client, name) for client in clients) for name in NAMES)
    return WinCounts(wins, ties, losses, unjudged, (number, total, squares), bins)


def win_rate_of(counts: WinCounts) -> Rate:
    """Return the win rate, a tie counting half; it equals that of the judgements themselves.

    Raises:
        ValueError: If there is no judgement.
    """
    if not counts.judged:
        raise ValueError("no pair has a judgement")
    mean = (counts.wins + 0.5 * counts.ties) / counts.judged
    return Rate(mean, *wilson(mean, counts.judged))


def length_controlled_of(counts: WinCounts) -> Rate:
    """Return the length-controlled win rate of judgements of different prompts, up to the width of a bin.

    See `feedback.winrates.length_controlled`, which it equals but for that.

    Raises:
        ValueError: If there is no judgement.
    """
    if not counts.judged:
        raise ValueError("no pair has a judgement")
    if counts.judged in (counts.wins, counts.ties, counts.losses):
        return win_rate_of(counts)
    places = np.arange(-SIDE, SIDE + 1)
    middles = np.sign(places) * np.expm1((np.abs(places) - 0.5).clip(0) / SIDE * FURTHEST)
    terms = np.repeat(length_term(middles, _spread(counts)), len(RESULTS))
    design, values = np.column_stack([np.ones(len(terms)), terms]), np.tile(RESULTS, len(places))
    each, ridge = counts.bins.reshape(-1), np.full(2, LEAST_RIDGE)
    weights = fitted(design, values, ridge, each)
    mean, fit = float(logistic(weights[:1])[0]), logistic(design @ weights)
    curvature = (design * (each * fit * (1 - fit))[:, None]).T @ design + np.diag(ridge)
    influence = (values - fit) * (design @ np.linalg.solve(curvature, np.array([mean * (1 - mean), 0.0])))
    error = math.sqrt(float((each * influence**2).sum()))
    return Rate(mean, max(mean - NORMAL * error, 0.0), min(mean + NORMAL * error, 1.0))


def _spread(counts: WinCounts) -> float:
    """Return the standard deviation of all differences in length."""
    count, total, squares = counts.lengths
    return math.sqrt(max(squares / count - (total / count) ** 2, 0.0))
