"""Trackers for tests, and readers of the files that they write."""

import json
from io import StringIO
from pathlib import Path

from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fed.tracking.tracker import Tracker


def quiet() -> Console:
    return Console(file=StringIO(), width=40)


def make(run_dir: Path, *, console: Console | None = None, tensorboard: bool = False, rounds: int = 2) -> Tracker:
    return Tracker(run_dir, tensorboard=tensorboard, num_rounds=rounds, clients_per_round=2, console=console or quiet())


def rows(run_dir: Path) -> list[dict[str, object]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read (step, value) pairs by tag, with TensorBoard itself, which verifies the checksums."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
