"""Finished runs, read from their folders: settings, curves, clients, test pairs and samples.

Shapes: C evaluated models (1; the clients in mode=local), P test pairs.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf

from fed.config.moved import name_as_now
from fed.config.scopes import of_role
from fed.tracking.line_files import read_lines
from fed.tracking.metrics import EVERYONE, Line, chosen, read_metrics
from fed.tracking.run_files import CONFIG, ENVIRONMENT, MARGINS, PARTITION_FILE, SAMPLES, SUMMARY, TIMING

# Keys that number a repetition or name a folder; they do not change what a run tries.
OF_THE_RUN = of_role("repetition", "place")


@dataclass(frozen=True)
class Point:
    """One evaluation of the global model on the test pairs; in mode=local the mean over the clients' models."""

    server_round: int
    pairs: int  # trained until then by all clients together
    seconds: float | None  # since the run began; in mode=local until all clients, one after the other, were as far
    metrics: Mapping[str, float]  # accuracy, margin, loss, log_ratio, ...; only finite values
    spread: Mapping[str, float]  # mode=local: standard deviation over clients, by metric


@dataclass(frozen=True)
class Run:
    """A run, read from its folder when it is asked."""

    folder: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved settings."""
        found: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(self.folder / CONFIG))  # type: ignore[assignment]
        name_as_now(found.get("partition", {}))
        return found

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The command line, versions and processor."""
        return _json(self.folder / ENVIRONMENT)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The summary that the run wrote when it had finished."""
        return _json(self.folder / SUMMARY)

    @property
    def seed(self) -> int:
        """The seed of everything drawn in the run."""
        return int(self.config["seed"])

    @property
    def mode(self) -> str:
        """The mode: federated, centralized or local."""
        return str(self.config["mode"])

    @property
    def finished(self) -> bool:
        """True if the run reached its end."""
        return (self.folder / SUMMARY).is_file()

    @cached_property
    def lines(self) -> list[Line]:
        """The lines of `metrics.jsonl`."""
        return read_metrics(self.folder)

    @cached_property
    def points(self) -> list[Point]:
        """The evaluations on the test pairs in order, with round 0."""
        who = EVERYONE if self.mode == "local" else "server"
        seconds = self._seconds()
        return [
            Point(
                line.server_round,
                line.pairs,
                seconds.get(line.server_round),
                {name: value for name, value in line.metrics.items() if value is not None and not _is_spread(name)},
                {name.removesuffix("_sd"): value for name, value in line.metrics.items() if _is_spread(name)},
            )
            for line in self.lines
            if line.who == who and line.split == "test"
        ]

    @property
    def chosen_accuracy(self) -> float | None:
        """The test accuracy after the round that the validation pairs chose; None without both.

        In mode=local each client chooses its own round, by its score on validation pairs, and this is their mean.
        """
        by_who: dict[str, list[Line]] = {}
        for line in self.lines:
            if line.who.startswith("client-") if self.mode == "local" else line.who == "server":
                by_who.setdefault(line.who, []).append(line)
        found = [chosen(lines).get("test", {}).get("accuracy") for lines in by_who.values()]
        known = [accuracy for accuracy in found if accuracy is not None]
        return fmean(known) if known and len(known) == len(found) else None

    @property
    def bytes_sent(self) -> int | None:
        """The bytes to and from the server in the whole run; None if nothing travels."""
        found = self.summary.get("bytes")
        return None if found is None else int(found["sent"] + found["received"])

    @cached_property
    def partition(self) -> dict[str, Any]:
        """The rows of each client."""
        return _json(self.folder / PARTITION_FILE)

    @property
    def conversations(self) -> list[str]:
        """The name of each test pair's conversation, (P,); it is the same in other runs."""
        return list(self.partition["test"]["conversations"])

    @property
    def test_pairs(self) -> list[str]:
        """The name of each test pair, (P,); it is the same in other runs."""
        return list(self.partition["test"]["pairs"])

    @cached_property
    def margins(self) -> dict[int, NDArray[np.float64]]:
        """The reward margin of each test pair by round, (C, P); a pair is ranked correctly if it is above 0."""
        by_round: dict[int, list[list[float]]] = {}
        for row in read_lines(self.folder / MARGINS):
            by_round.setdefault(row["round"], []).append(row["margins"])
        return {number: np.array(rows, dtype=np.float64) for number, rows in sorted(by_round.items())}

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """The responses drawn during evaluation: objects with `round`, `who`, `prompt`, `reference` and `policy`."""
        return list(read_lines(self.folder / SAMPLES))

    def of_clients(self, split: str, metric: str) -> dict[int, dict[int, float]]:
        """Return a metric of each client by round, e.g. `aggregate`/`weight`, `train`/`decay` or `train`/`loss`."""
        found: dict[int, dict[int, float]] = {}
        for line in self.lines:
            value = line.metrics.get(metric)
            if line.split == split and line.who.startswith("client-") and value is not None:
                found.setdefault(int(line.who.removeprefix("client-")), {})[line.server_round] = value
        return dict(sorted(found.items()))

    def _seconds(self) -> dict[int, float]:
        """Return the wall time by round; in mode=local each client runs all its rounds before the next one begins."""
        by_who: dict[str, dict[int, float]] = {}
        for row in read_lines(self.folder / TIMING):
            by_who.setdefault(row["who"], {})[row["round"]] = row["wall_seconds"]
        if not by_who:
            return {}
        began = min(min(found.values()) for found in by_who.values())
        rounds = set.intersection(*(set(found) for found in by_who.values()))
        return {r: began + sum(found[r] - min(found.values()) for found in by_who.values()) for r in sorted(rounds)}


@dataclass(frozen=True)
class Method:
    """One way to train, with a run for each seed."""

    name: str  # as the user calls it, e.g. fedpo, fedavg, centralized, local
    runs: Sequence[Run]

    @property
    def mode(self) -> str:
        """The mode: federated, centralized or local."""
        return self.runs[0].mode

    def by_round(self) -> Iterator[tuple[int, list[Point]]]:
        """Yield the rounds in which every run was evaluated, each with a point of every run."""
        points = [{point.server_round: point for point in run.points} for run in self.runs]
        for server_round in sorted(set.intersection(*(set(found) for found in points))):
            yield server_round, [found[server_round] for found in points]


def _is_spread(name: str) -> bool:
    return name.endswith("_sd")


def _json(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
