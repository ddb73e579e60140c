"""Ends of 95 % intervals: of a share, of a mean, and the quantiles of the normal and of Student's distribution."""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

NORMAL = NormalDist().inv_cdf(0.975)  # 1.96: 95 % of a normal distribution lie within so many standard deviations


def wilson(share: float, count: float) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of a share that was measured on `count` independent pairs.

    It lies within [0, 1], holds the share, and has a width at a share of 0 and of 1 too, where the standard error would
    be 0.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference"; Brown, Cai and DasGupta
    2001, "Interval estimation for a binomial proportion", Eq. 4.
    """
    z2 = NORMAL * NORMAL
    centre = (share * count + z2 / 2) / (count + z2)
    half = NORMAL / (count + z2) * math.sqrt(count * share * (1 - share) + z2 / 4)
    # Rounding may leave an end a hair on the wrong side of the share, which is the end at 0 and at 1.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's distribution with so many degrees of freedom, to 0.2 %.

    One and two degrees have closed forms. For more it is the expansion about the normal quantile: Abramowitz and
    Stegun 1964, 26.7.5.
    """
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z, n = NORMAL, freedom
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / n**power for power, term in enumerate(terms, start=1))


def mean_interval(values: Sequence[float], units: Sequence[Hashable]) -> tuple[float, float, float]:
    """Return the mean of values and the ends of its 95 % interval; arguments and source as for `ratio_interval`."""
    return ratio_interval(values, [1.0] * len(values), units)


def ratio_interval(
    values: Sequence[float], sizes: Sequence[float], units: Sequence[Hashable]
) -> tuple[float, float, float]:
    """Return the sum of values over the sum of sizes and the ends of its 95 % interval, NaN for a single unit.

    Args:
        values: What is summed up.
        sizes: The size of what each value was measured on.
        units: The unit of each, its conversation for one: values of one unit are not independent.

    Source: the variance of a ratio over clusters (Cochran 1977, "Sampling Techniques", 2.11 and 9A.2), and Student's
    distribution with one degree of freedom less than there are units.
    """
    total = math.fsum(sizes)
    ratio = math.fsum(values) / total
    sums: dict[Hashable, float] = {}
    for value, size, unit in zip(values, sizes, units, strict=True):
        sums[unit] = sums.get(unit, 0.0) + value - ratio * size
    count = len(sums)
    if count < 2:
        return ratio, math.nan, math.nan
    spread = math.sqrt(count / (count - 1) * math.fsum(rest * rest for rest in sums.values()))
    half = student(count - 1) * spread / total
    return ratio, ratio - half, ratio + half
