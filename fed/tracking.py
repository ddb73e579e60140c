"""What a run tells the world: `metrics.jsonl`, TensorBoard, the progress on the console and `summary.json`."""

import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from rich.console import Console

from fed.cpu import peak_memory
from fed.endings import writing
from fed.event_files import EventFiles, cut_off
from fed.progress import Display

METRICS = "metrics.jsonl"
FAILURE = "failure"  # the split under which clients stand that were left out of a round


class Tracker:
    """The only writer of metrics; a context manager.

    Attributes:
        pairs: Pairs trained by all clients so far.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        tensorboard: bool = True,
        num_rounds: int,
        clients_per_round: int,
        console: Console | None = None,
    ) -> None:
        self.pairs = 0
        self._run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        self._metrics = (run_dir / METRICS).open("a", encoding="utf-8")
        self._events = EventFiles(run_dir / "tensorboard") if tensorboard else None
        self._display = Display(console or Console(), num_rounds, clients_per_round)
        self._stopwatch = _Stopwatch()
        self._round: _Round | None = None
        self._began = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """What is written so far, now on the disk, and what was counted."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        return {
            "pairs": self.pairs,
            "seconds": self.seconds(),
            "wall_seconds": time.perf_counter() - self._began,
            "metrics": self._metrics.tell(),
            "events": self._events.state_dict() if self._events else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: what was written later is cut off."""
        self.pairs = state["pairs"]
        self._stopwatch.set(state["seconds"])
        self._began = time.perf_counter() - state["wall_seconds"]
        self._metrics.flush()
        cut_off(self._run_dir / METRICS, state["metrics"])
        self._metrics.seek(0, os.SEEK_END)
        if self._events and state["events"] is not None:
            self._events.load_state_dict(state["events"])

    def start_over(self) -> None:
        """Forget what an earlier process wrote."""
        events = self._events.state_dict() if self._events else {}
        state = {"pairs": 0, "seconds": {}, "wall_seconds": 0.0, "metrics": 0, "events": {**events, "sizes": {}}}
        self.load_state_dict(state)

    def seconds(self) -> dict[str, float]:
        """Time by phase so far."""
        return self._stopwatch.seconds()

    def spend(self, seconds: Mapping[str, float]) -> None:
        """That much more time was spent, by phase, before this process began."""
        before = self.seconds()
        self._stopwatch.set({name: before.get(name, 0.0) + seconds.get(name, 0.0) for name in {**before, **seconds}})

    def reference(self, pairs: int, total: int) -> None:
        """So many of all pairs have their reference log-probs; nothing is recorded."""
        self._display.reference(pairs, total)

    def server(self, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Record an evaluation of the global model; round 0 is the model before training."""
        self._append("server", server_round, split, metrics)
        tags = {f"{split}/{name}": value for name, value in metrics.items()}
        if split == "validation" and "accuracy" in metrics:
            tags["avg_acc/server"] = metrics["accuracy"]
        self._write_events("Server", tags, server_round, flush=True)
        self._enter(server_round).server[split] = {name: float(value) for name, value in metrics.items()}
        if "accuracy" in metrics and split in ("validation", "test"):
            self._display.accuracy = float(metrics["accuracy"])

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Record what one client reported after its training or evaluation in a round."""
        self._append(f"client-{client_id}", server_round, split, metrics)
        if "accuracy" not in metrics:
            return
        if split == "validation":
            self._write_events("Server", {f"acc/client-{client_id}": metrics["accuracy"]}, server_round)
        self._enter(server_round).clients.setdefault(split, {})[client_id] = float(metrics["accuracy"])

    def failed(self, client_id: int, server_round: int, reason: str, details: str) -> None:
        """Record that a client is left out of a round, and why; `details`, a traceback, go to `failures.log`."""
        line = {"round": server_round, "who": f"client-{client_id}", "split": FAILURE, "pairs": self.pairs}
        self._write_line({**line, "reason": reason})
        self._enter(server_round).failed += 1
        self._display.print_failure(server_round, client_id, reason)
        if details:
            with (self._run_dir / "failures.log").open("a", encoding="utf-8") as file:
                file.write(f"round {server_round}, client-{client_id}: {details}\n")

    def clients_done(self, server_round: int) -> None:
        """Close the round's reports: `avg_acc/client` is the plain mean over the clients that reported."""
        accuracies = self._enter(server_round).clients.get("validation", {})
        self._write_events("Server", {"clients/failed": self._enter(server_round).failed}, server_round)
        if accuracies:
            self._write_events("Server", {"avg_acc/client": fmean(accuracies.values())}, server_round, flush=True)
        self._display.end_visit()

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Write TensorBoard values of one client at its update number `step`; keys are complete tags.

        Training values reach the disk within seconds of the next call, the rarer "eval" values at once.
        """
        self._write_events(f"Client-{client_id}", metrics, step, flush=split == "eval")

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """Say that a client is about to train `pairs` pairs, every epoch counted."""
        self._enter(server_round)
        self._display.start_client(server_round, client_id, pairs)

    def advance(self, pairs: int) -> None:
        """Count pairs that were just trained."""
        self.pairs += pairs
        self._display.advance(pairs, self._pairs_per_second())

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Account wall time to `name`; time within a nested phase belongs to the nested one only."""
        return self._stopwatch.phase(name)

    def summary(self, **extra: object) -> dict[str, Any]:
        """Write `summary.json` and return it.

        `final` holds the last server line of each split and `best` the most accurate one. Seconds are those of the
        whole run; memory (10^9 bytes) is that of this process. What was never measured is left out. `extra` is added at
        the top level and wins over a key of the same name.
        """
        self._print_round()
        every = read_metrics(self._run_dir)
        lines = [line for line in every if line.who == "server"]
        failures = Counter(line.who for line in every if line.split == FAILURE)
        rate = self._pairs_per_second()
        report = {
            "final": {line.split: line.values() for line in lines},
            "best": _best(lines),
            "pairs": self.pairs,
            **({"failures": failures} if failures else {}),
            **({} if rate is None else {"pairs_per_second": rate}),
            "seconds": self.seconds(),
            "wall_seconds": time.perf_counter() - self._began,
            "peak_memory_gb": peak_memory() / 1e9,
            **extra,
        }
        plain: dict[str, Any] = _plain(report)
        (self._run_dir / "summary.json").write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
        return plain

    def close(self) -> None:
        """Bring everything to the disk and give the terminal back; closing twice is harmless."""
        self._print_round()
        self._display.close()
        self._metrics.close()
        if self._events:
            self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, who: str, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        self._write_line({"round": server_round, "who": who, "split": split, "pairs": self.pairs, **metrics})

    def _write_line(self, line: Mapping[str, object]) -> None:
        with writing(self._run_dir / METRICS):
            self._metrics.write(json.dumps(_plain(line), allow_nan=False) + "\n")
            self._metrics.flush()

    def _write_events(self, folder: str, tags: Mapping[str, float], step: int, *, flush: bool = False) -> None:
        if self._events:
            with writing(self._run_dir / "tensorboard" / folder):
                self._events.write(folder, tags, step)
                if flush:
                    self._events.flush()

    def _enter(self, server_round: int) -> "_Round":
        if self._round is None or self._round.server_round != server_round:
            self._print_round()
            self._round = _Round(server_round)
        return self._round

    def _print_round(self) -> None:
        # A round's validation, test and client figures come one by one; its line waits until the round is over.
        if self._round:
            self._display.print_line(self._round.server_round, self._round.texts(), self._pairs_per_second())
        self._round = None

    def _pairs_per_second(self) -> float | None:
        seconds = self.seconds().get("train", 0.0)
        return self.pairs / seconds if self.pairs and seconds else None


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
    path = run_dir / METRICS
    texts = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    rows = [json.loads(text) for text in texts if text.endswith("\n")]
    return [Line(row.pop("round"), row.pop("who"), row.pop("split"), row.pop("pairs"), row) for row in rows]


def _best(lines: Iterable[Line]) -> dict[str, dict[str, Any]]:
    """The most accurate line of each split, the earlier one among equals."""
    best: dict[str, tuple[float, Line]] = {}
    for line in lines:
        accuracy = line.metrics.get("accuracy")
        if accuracy is not None and (line.split not in best or accuracy > best[line.split][0]):
            best[line.split] = accuracy, line
    return {split: line.values() for split, (_, line) in best.items()}


def _plain(value: Any) -> Any:
    """The value as JSON knows it: scalars of numpy and torch become numbers, NaN and infinity null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass
class _Round:
    """What is known of the current round: metrics by split, and accuracies by split and client."""

    server_round: int
    server: dict[str, Mapping[str, float]] = field(default_factory=dict)
    clients: dict[str, dict[int, float]] = field(default_factory=dict)
    failed: int = 0

    def texts(self) -> Iterator[tuple[str, float, float | None]]:
        """(label, value, standard error) of the round's line."""
        for split, metrics in self.server.items():
            if "accuracy" in metrics:
                yield f"{split} accuracy", metrics["accuracy"], metrics.get("accuracy_se")
            elif "loss" in metrics:
                yield f"{split} loss", metrics["loss"], None
        for split, accuracies in self.clients.items():
            who = "clients'" if len(accuracies) > 1 else f"client-{next(iter(accuracies))}"
            yield f"{who} {split} accuracy", fmean(accuracies.values()), None


class _Stopwatch:
    """Seconds by phase; of nested phases only the innermost runs."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._phases: list[str] = []
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._charge()
        self._phases.append(name)
        try:
            yield
        finally:
            self._charge()
            self._phases.pop()

    def seconds(self) -> dict[str, float]:
        self._charge()
        return dict(self._seconds)

    def set(self, seconds: Mapping[str, float]) -> None:
        self._charge()
        self._seconds = dict(seconds)

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._phases:
            self._seconds[self._phases[-1]] = self._seconds.get(self._phases[-1], 0.0) + now - self._since
        self._since = now
