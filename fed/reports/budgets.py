"""The numbers of pairs that compared methods had trained, which should be equal at each evaluation."""

from collections.abc import Iterator, Sequence

from fed.reports.runs import Method

EQUAL = "All methods had trained the same number of pairs at each evaluated round of each seed."


def budgets(methods: Sequence[Method]) -> list[str]:
    """Say which methods had not trained the same number of pairs at an evaluated round of a seed, or that all had."""
    first, *others = methods
    return [line for other in others for line in _unequal(first, other)] or [EQUAL]


def _unequal(first: Method, other: Method) -> Iterator[str]:
    """Yield a sentence for each way in which the budgets of two methods differ."""
    owned, trained = _pairs(first), _pairs(other)
    both = sorted(owned.keys() & trained.keys())
    differing = [at for at in both if owned[at] != trained[at]]
    if differing:
        at = max(differing, key=lambda at: abs(owned[at] - trained[at]))
        yield (
            f"{other.name} and {first.name} had trained different numbers of pairs at {len(differing)} of {len(both)} "
            f"evaluations, furthest apart at round {at[1]} of seed {at[0]}: {trained[at]:,} and {owned[at]:,}."
        )
    seeds = {seed for seed, _ in both}
    if any(seed in seeds for seed, _ in owned.keys() ^ trained.keys()):
        yield f"{other.name} and {first.name} were not evaluated after the same rounds."


def _pairs(method: Method) -> dict[tuple[int, int], int]:
    """Return the pairs trained until each evaluation, by seed and round."""
    return {(run.seed, point.server_round): point.pairs for run in method.runs for point in run.points}
