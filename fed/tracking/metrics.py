"""The lines of `metrics.jsonl`, and the means and bests that are computed from them."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from fed.tracking.earlier_lines import as_now
from fed.tracking.line_files import read_lines
from fed.tracking.run_files import METRICS

# Splits that are no data.
FAILURE = "failure"  # a client that was left out of a round
COMMUNICATION = "communication"  # the bytes that travelled in a round
PRIVACY = "privacy"  # the budget that the rounds so far have spent

EVERYONE = "clients"  # `who` of the mean over clients that train alone
ROUNDING = 1e-9  # a mean over steps whose pairs all tie may be less than 1 by so much


@dataclass(frozen=True)
class Line:
    """One line of `metrics.jsonl`; a metric that was not finite is None. A failure has only a reason."""

    server_round: int
    who: str
    split: str
    pairs: int
    metrics: Mapping[str, Any]

    def values(self) -> dict[str, Any]:
        """Return the line's round, pairs and metrics."""
        return {"round": self.server_round, "pairs": self.pairs, **self.metrics}


def read_metrics(run_dir: Path) -> list[Line]:
    """Read the lines of `metrics.jsonl` in order, without a last line that is incomplete.

    Lines of earlier versions have the names of today: see `fed.tracking.earlier_lines`.
    """
    rows = as_now(read_lines(run_dir / METRICS))
    return [Line(row.pop("round"), row.pop("who"), row.pop("split"), row.pop("pairs"), row) for row in rows]


def means_over_clients(lines: Iterable[Line]) -> Iterator[tuple[int, int, dict[str, float]]]:
    """Yield (round, pairs, mean test metrics) of clients that train one after the other, each through all rounds.

    `pairs` counts what all clients together had trained after so many rounds.
    """
    by_round: dict[int, list[Line]] = {}
    began: dict[str, int] = {}  # pairs that other clients had trained when a client's first round began
    for line in lines:
        if line.split == "test" and line.who.startswith("client-"):
            by_round.setdefault(line.server_round, []).append(line)
            began.setdefault(line.who, line.pairs)
    for server_round, reported in sorted(by_round.items()):
        pairs = sum(line.pairs - began[line.who] for line in reported)
        yield server_round, pairs, means([line.metrics for line in reported])


def means(every: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each metric that all have, and its standard deviation under `..._sd`.

    The ends of single clients' intervals (`..._low`, `..._high`) are left out.
    """
    ends = ("_low", "_high")
    names = [n for n in every[0] if not n.endswith(ends) and all(metrics.get(n) is not None for metrics in every)]
    found = {name: fmean(metrics[name] for metrics in every) for name in names}
    if len(every) > 1:
        found |= {f"{name}_sd": stdev(metrics[name] for metrics in every) for name in names}
    return found


def results(lines: Sequence[Line], pairs: int) -> dict[str, Any]:
    """Return the part of `summary.json` that follows from the metrics.

    `final` holds the last server line of each split, `chosen` those of the round that the validation pairs chose, and
    `best` each split's most accurate one: on the test pairs themselves that is a choice which flatters. `chosen`, bytes
    and failures are left out if there are none.
    """
    shared = [line for line in lines if line.who in ("server", EVERYONE) and line.split != COMMUNICATION]
    travelled = [line.metrics for line in lines if line.split == COMMUNICATION]
    by_validation = chosen(shared)
    failures = Counter(line.who for line in lines if line.split == FAILURE)
    found: dict[str, Any] = {
        "final": {line.split: line.values() for line in shared},
        **({"chosen": by_validation} if by_validation else {}),
        "best": best(shared),
        "pairs": pairs,
    }
    if travelled:
        found["bytes"] = {way: sum(metrics[f"bytes_{way}"] for metrics in travelled) for way in ("sent", "received")}
    if failures:
        found["failures"] = failures
    return found


def chosen(lines: Sequence[Line]) -> dict[str, dict[str, Any]]:
    """Return the lines, by split, of the round after which the validation pairs were ranked best.

    Of equal rounds it is the earliest. Nothing is chosen before training, or without validation pairs.
    """
    trained = [line for line in lines if line.server_round > 0]
    scored = [line for line in trained if line.split == "validation" and line.metrics.get("accuracy") is not None]
    if not scored:
        return {}
    at = max(scored, key=lambda line: (line.metrics["accuracy"], -line.server_round)).server_round
    return {line.split: line.values() for line in trained if line.server_round == at and line.split != PRIVACY}


def untied_accuracy(metrics: Mapping[str, Any]) -> float | None:
    """Return the accuracy on the pairs that do not tie; None if all do, or none was measured.

    `accuracy` counts ties as wrong. Before its first step a client's policy is the reference in round 1, so there all
    pairs of that step tie.
    """
    accuracy = metrics.get("accuracy")
    if accuracy is None or all_tie(metrics):
        return None
    return min(1.0, float(accuracy) / (1 - (metrics.get("ties") or 0.0)))


def all_tie(metrics: Mapping[str, Any]) -> bool:
    """Return True if all pairs tie, so that their accuracy, 0, measures nothing."""
    return (metrics.get("ties") or 0.0) > 1 - ROUNDING


def num_tied(every: Iterable[Mapping[str, Any]]) -> int:
    """Return how many pairs tie, of lines that say how many they have."""
    return sum(round((metrics.get("ties") or 0.0) * metrics.get("examples", 0)) for metrics in every)


def best(lines: Iterable[Line]) -> dict[str, dict[str, Any]]:
    """Return the most accurate line of each split; among equals the earliest."""
    found: dict[str, tuple[float, Line]] = {}
    for line in lines:
        accuracy = line.metrics.get("accuracy")
        if accuracy is not None and (line.split not in found or accuracy > found[line.split][0]):
            found[line.split] = accuracy, line
    return {split: line.values() for split, (_, line) in found.items()}
