"""Simulated comparisons of two methods, and how often the interval of their difference holds the true one.

`python -m support.coverage 10000`, with tests/ in PYTHONPATH, prints the table of docs/reading_the_curves.md.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from fed.reports.statistics import Floats, paired_difference


@dataclass(frozen=True)
class Case:
    """Runs whose true difference is known: `ahead - behind`.

    On a pair the first method alone is right with probability `ahead`, the second alone with `behind`. `apart` is the
    standard deviation of the seeds' true differences, as a multiple of the standard error that its pairs leave a seed.
    """

    pairs: int  # of each seed
    ahead: float
    behind: float = 0.0
    seeds: int = 1
    apart: float = 0.0
    shares_pairs: bool = False  # all seeds have the same test pairs
    largest: int = 1  # conversations have 1 to so many pairs, which all go the same way

    @property
    def truth(self) -> float:
        """The true difference."""
        return self.ahead - self.behind

    def draw(self, rng: np.random.Generator) -> tuple[list[Floats], list[list[str]]]:
        """Return differences and conversations for each seed."""
        error = math.sqrt((self.ahead + self.behind - self.truth**2) / self.pairs)
        chances = [self.ahead, 1 - self.ahead - self.behind, self.behind]
        differences, conversations = [], []
        for seed in range(self.seeds):
            sizes = rng.integers(1, self.largest + 1, self.pairs)
            won = rng.choice([1.0, 0.0, -1.0], self.pairs, p=chances)
            effect = self.apart * error * rng.standard_normal()
            differences.append(np.repeat(won, sizes) + effect)
            names = [f"{0 if self.shares_pairs else seed}-{i}" for i in range(self.pairs)]
            conversations.append(np.repeat(names, sizes).tolist())
        return differences, conversations


CASES: Mapping[str, Case] = {
    "512 pairs, difference 0.004, all one way": Case(512, 0.004),
    "512 pairs, difference 0.01, all one way": Case(512, 0.01),
    "64 pairs, difference 0.03, all one way": Case(64, 0.03),
    "16 pairs, difference 0.1, all one way": Case(16, 0.1),
    "512 pairs, difference 0.004, 10 % go either way": Case(512, 0.104, 0.1),
    "64 pairs, difference 0.03, 10 % go either way": Case(64, 0.13, 0.1),
    "16 pairs, difference 0.1, 10 % go either way": Case(16, 0.2, 0.1),
    "16 conversations of 1 to 4 pairs": Case(16, 0.4, 0.3, largest=4),
    "64 conversations of 1 to 4 pairs": Case(64, 0.4, 0.3, largest=4),
    **{
        f"{seeds} seeds of 64 pairs{' (the same)' if same else ''}, {apart} standard errors apart": Case(
            64, 0.13, 0.1, seeds=seeds, apart=apart, shares_pairs=same
        )
        for seeds in (2, 3, 5)
        for apart in (0, 1, 2, 10)
        for same in (False, True)
    },
}


def coverage(case: Case, draws: int, *, seed: int = 0) -> tuple[float, float]:
    """Return the share of draws whose interval holds the true difference, and the median width."""
    rng = np.random.default_rng(seed)
    found = [paired_difference(*case.draw(rng)) for _ in range(draws)]
    held = sum(one.low <= case.truth <= one.high for one in found)
    return held / draws, float(np.median([one.high - one.low for one in found]))


def table(draws: int) -> Iterator[str]:
    """Yield the lines of the table."""
    yield "| simulated | interval holds the true difference | median width |"
    yield "|---|---|---|"
    for name, case in CASES.items():
        held, width = coverage(case, draws)
        yield f"| {name} | {100 * held:.1f} % | {width:.3f} |"


if __name__ == "__main__":
    for line in table(int(sys.argv[1])):
        print(line, flush=True)
