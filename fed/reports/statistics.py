"""Statistics of finished runs: means with standard errors, and paired differences in accuracy with intervals.

Shapes: S seeds, P test pairs of a seed, U conversations of all seeds.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fed.config.explain import counted
from fed.intervals import NORMAL, student, wilson
from fed.reports.runs import Method, Run

SAME = 1e-9  # accuracies that differ by less are one and the same, but for rounding
Floats = NDArray[np.float64]


class Mean(NamedTuple):
    """A mean and its standard error; NaN for a single value."""

    mean: float
    se: float

    @property
    def low(self) -> float:
        """The mean less its standard error."""
        return self.mean - self.se

    @property
    def high(self) -> float:
        """The mean and its standard error."""
        return self.mean + self.se

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "not finite"
        return f"{self.mean:z.3f}" + ("" if math.isnan(self.se) else f" ± {self.se:.3f}")


class Share(NamedTuple):
    """An accuracy on the test pairs of one seed, with the ends of Wilson's 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return with_interval(*self)


@dataclass(frozen=True)
class Difference:
    """The accuracy of one method minus that of another on the same test pairs, with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float
    num_pairs: int  # summed over seeds
    num_seeds: int
    of_pairs: tuple[float, float] | None = None  # ends of the interval for these very seeds, whatever others would do
    pairs_of_each: int | None = None  # pairs of a seed, if all seeds have as many

    @property
    def size(self) -> str:
        """The number of seeds and of pairs; seeds may share pairs, so a sum of them would say too much."""
        seeds = counted(self.num_seeds, "seed")
        if self.num_seeds == 1 or self.pairs_of_each is None:
            return f"{seeds}, {self.num_pairs:,} pairs"
        return f"{seeds} x {self.pairs_of_each:,} pairs"

    @property
    def shown(self) -> bool:
        """True if the interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def has_too_few_seeds(self) -> bool:
        """True if the interval includes 0 and seeds decide that: their pairs exclude it, or they double the width."""
        if self.shown or self.of_pairs is None:
            return False
        low, high = self.of_pairs
        return low > 0 or high < 0 or self.high - self.low > 2 * (high - low)

    def verdict(self, a: str, b: str) -> str:
        """Say in words which of the methods `a`, the minuend, and `b` is better."""
        found = with_interval(self.mean, self.low, self.high)
        if self.has_too_few_seeds:
            assert self.of_pairs is not None
            alone = "[{:z.3f}, {:z.3f}]".format(*self.of_pairs)
            return f"too few seeds to say: {found}; for these {self.num_seeds} seeds alone {alone}"
        if not self.shown:
            return f"no difference shown: {found}"
        if self.low > 0:
            return f"{a} is better than {b} by {found}"
        return f"{b} is better than {a} by {with_interval(-self.mean, -self.high, -self.low)}"


def mean_and_se(values: Sequence[float]) -> Mean:
    """Return the mean and its standard error sd / sqrt(n), with n - 1 in the standard deviation.

    Raises:
        StatisticsError: If there is no value.
    """
    if len(values) > 1 and len({*values}) == 1:
        return Mean(values[0], 0.0)  # exactly, which rounding would not give
    return Mean(fmean(values), float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan)


def accuracy(values: Sequence[float], num_pairs: float) -> Mean | Share:
    """Return the mean accuracy of seeds that have `num_pairs` test pairs each.

    One seed has Wilson's interval, and so have seeds of one and the same accuracy: their standard error 0 would say
    that nothing is unknown.

    Raises:
        StatisticsError: If there is no value.
    """
    found = mean_and_se(values)
    if math.isnan(found.mean) or found.se > 0:
        return found
    return Share(found.mean, *wilson(found.mean, num_pairs))


def differences(methods: Sequence[Method]) -> dict[tuple[str, str], Difference]:
    """Return the `difference` of every two methods, by their names in the order given."""
    return {(a.name, b.name): difference(a, b) for a, b in combinations(methods, 2)}


def verdicts(differences: Mapping[tuple[str, str], Difference]) -> list[str]:
    """Say every paired difference in words."""
    return [f"{a} against {b}: {found.verdict(a, b)} ({found.size})" for (a, b), found in differences.items()]


def difference(a: Method, b: Method, server_round: int | None = None) -> Difference:
    """Return the accuracy of `a` minus that of `b` after a round; by default the last one that both have margins of.

    Runs are matched by seed; seeds that only one method has are left out. In mode=local a pair counts as the share
    of clients that rank it correctly.

    Raises:
        ValueError: If the two share no seed or no round, or runs of one seed have different test pairs.
    """
    matched = list(_matched(a, b))
    if not matched:
        raise ValueError(f"{a.name} and {b.name} have no seed in common; run both with the same seeds")
    rounds = set.intersection(*(set(run.margins) for runs in matched for run in runs)) - {0}
    if not rounds or (server_round is not None and server_round not in rounds):
        known = ", ".join(map(str, sorted(rounds))) or "none"
        wanted = "any round" if server_round is None else f"round {server_round}"
        raise ValueError(f"{a.name} and {b.name} lack margins of {wanted}; rounds that all their runs have: {known}")
    at = max(rounds) if server_round is None else server_round
    vectors = [_correct(own, at) - _correct(other, at) for own, other in matched]
    return paired_difference(vectors, [own.conversations for own, _ in matched])


def paired_difference(differences: Sequence[Floats], conversations: Sequence[Sequence[str]]) -> Difference:
    """Return the mean over seeds of the mean over pairs, with a 95 % interval that lies within [-1, 1].

    **Pairs.** To the conversations come two invented ones of mean size, one won by either method. Then the interval is
    mean -+ t sqrt(V), V being the variance of the mean with whole conversations as its units, because pairs of one
    conversation are not independent, and t Student's quantile for their number. With conversations of one pair and the
    normal quantile in place of t this is the adjusted Wald interval of Bonett and Price 2012, "Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data". Without the two it would have no
    width where the methods agree on all pairs. Seeds that have the same conversation share its luck.

    **Seeds.** The means of S seeds have the standard error s = sd / sqrt(S), and t_(S-1) s is the half width for other
    seeds. It holds the noise that each seed's pairs leave its own mean, whose variance W the interval of pairs holds
    already. So the squares of the half widths are added and W's is subtracted (as in Cameron, Gelbach and Miller
    2011, "Robust inference with multiway clustering": V = V_pairs + V_seeds - V_both):

        end = mean -+ sqrt((mean - end of pairs)^2 + max(0, t_(S-1)^2 s^2 - 1.96^2 W))

    Two seeds have t = 12.7, three 4.3: where they differ, they say little of others. One seed says nothing of others,
    so then nothing is added. docs/reading_the_curves.md has the coverage in simulations.

    Args:
        differences: For each seed, correctness with one method minus that with the other, in [-1, 1], (P,).
        conversations: For each seed, the conversation of each of these pairs, (P,).
    """
    sums_SU, counts_SU = _by_conversation(differences, conversations)
    num_pairs_S = counts_SU.sum(axis=1, keepdims=True)
    values_SU, shares_SU = sums_SU / num_pairs_S, counts_SU / num_pairs_S  # of the seed's mean, and of its pairs
    means_S = values_SU.sum(axis=1)
    mean, num_seeds = float(means_S.mean()), len(means_S)
    of_pairs = _over_pairs(values_SU, shares_SU, means_S)
    added = _over_seeds(values_SU, shares_SU, means_S) if num_seeds > 1 else 0.0
    low, high = (math.sqrt((mean - end) ** 2 + added) for end in of_pairs)
    ends, each = (max(-1.0, mean - low), min(1.0, mean + high)), {*map(len, differences)}
    count, common = int(counts_SU.sum()), each.pop() if len(each) == 1 else None
    return Difference(mean, *ends, num_pairs=count, num_seeds=num_seeds, of_pairs=of_pairs, pairs_of_each=common)


def _over_pairs(values_SU: Floats, shares_SU: Floats, means_S: Floats) -> tuple[float, float]:
    """Return the ends of the interval over conversations, for these seeds alone."""
    size = values_SU.shape[1]
    shrunk = size / (size + 2)  # the two invented conversations cancel out in the mean
    mean = float(means_S.mean()) * shrunk
    residuals_U = (values_SU - shrunk * means_S[:, None] * shares_SU).mean(axis=0)
    invented = ((1 - mean) ** 2 + (1 + mean) ** 2) / size**2
    half = student(size + 1) * shrunk * math.sqrt(float((residuals_U**2).sum()) + invented)
    return max(-1.0, mean - half), min(1.0, mean + half)


def _over_seeds(values_SU: Floats, shares_SU: Floats, means_S: Floats) -> float:
    """Return the square of the half width that other seeds add to the interval over pairs."""
    num_seeds = len(means_S)
    noise = float(((values_SU - means_S[:, None] * shares_SU) ** 2).sum()) / num_seeds**2
    return max(0.0, student(num_seeds - 1) ** 2 * float(means_S.var(ddof=1)) / num_seeds - NORMAL**2 * noise)


def _by_conversation(differences: Sequence[Floats], conversations: Sequence[Sequence[str]]) -> tuple[Floats, Floats]:
    """Return the sum of the differences and the number of pairs in each conversation, both (S, U)."""
    position = {name: i for i, name in enumerate(dict.fromkeys(name for names in conversations for name in names))}
    sums, counts = np.zeros((len(differences), len(position))), np.zeros((len(differences), len(position)))
    for s, (vector, names) in enumerate(zip(differences, conversations, strict=True)):
        where = [position[name] for name in names]
        sums[s] = np.bincount(where, vector, minlength=len(position))
        counts[s] = np.bincount(where, minlength=len(position))
    return sums, counts


def _matched(a: Method, b: Method) -> Iterator[tuple[Run, Run]]:
    others = {run.seed: run for run in b.runs}
    for own in a.runs:
        if (other := others.get(own.seed)) is None:
            continue
        if own.test_pairs != other.test_pairs:
            raise ValueError(f"{own.folder} and {other.folder} have the same seed but other test pairs: not comparable")
        yield own, other


def _correct(run: Run, server_round: int) -> Floats:
    """Return the share of the evaluated models that rank each pair correctly, (P,)."""
    correct: Floats = (run.margins[server_round] > 0).mean(axis=0)
    return correct


def with_interval(mean: float, low: float, high: float) -> str:
    """Return a number with the ends of its interval, as all reports show it."""
    return f"{mean:z.3f} [{low:z.3f}, {high:z.3f}]"
