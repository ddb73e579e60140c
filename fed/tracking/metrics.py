"""The lines of `metrics.jsonl` and the means that are made of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fed.tracking.line_files import read_lines

METRICS, SUMMARY = "metrics.jsonl", "summary.json"


MARGINS = "margins.jsonl"  # of each test pair, by evaluation


TIMING = "timing.jsonl"  # wall time of each evaluation; apart, since no two runs take the same


SAMPLES = "samples.jsonl"  # responses drawn during evaluation


FAILURE = "failure"  # the split under which clients stand that were left out of a round


COMMUNICATION = "communication"  # the split of what travelled in a round


PRIVACY = "privacy"  # the split of what the rounds so far cost of it


EVERYONE = "clients"  # who stands for the mean over clients that train alone


@dataclass(frozen=True)
class Line:
    """One line of `metrics.jsonl`; a metric that was not finite is None. Of a failure the only one is its reason."""

    server_round: int
    who: str
    split: str
    pairs: int
    metrics: Mapping[str, Any]

    def values(self) -> dict[str, Any]:
        """The numbers of the line."""
        return {"round": self.server_round, "pairs": self.pairs, **self.metrics}


def read_metrics(run_dir: Path) -> list[Line]:
    """Lines of `metrics.jsonl` in order; one that was cut off while it was written does not count."""
    rows = read_lines(run_dir / METRICS)
    return [Line(row.pop("round"), row.pop("who"), row.pop("split"), row.pop("pairs"), row) for row in rows]


def _means(every: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean of each metric that all have, and with `_sd` its standard deviation; errors of single ones are left out."""
    names = [n for n in every[0] if not n.endswith("_se") and all(metrics.get(n) is not None for metrics in every)]
    means = {name: fmean(metrics[name] for metrics in every) for name in names}
    if len(every) > 1:
        means |= {f"{name}_sd": stdev(metrics[name] for metrics in every) for name in names}
    return means


def _best(lines: Iterable[Line]) -> dict[str, dict[str, Any]]:
    """The most accurate line of each split, the earlier one among equals."""
    best: dict[str, tuple[float, Line]] = {}
    for line in lines:
        accuracy = line.metrics.get("accuracy")
        if accuracy is not None and (line.split not in best or accuracy > best[line.split][0]):
            best[line.split] = accuracy, line
    return {split: line.values() for split, (_, line) in best.items()}
