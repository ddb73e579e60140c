"""What a run tells the world: its `.jsonl` files, TensorBoard, the progress on the console and `summary.json`."""

import html
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from fed.cpu.runtime import peak_memory
from fed.files import writing
from fed.tracking.event_files import EventFiles
from fed.tracking.line_files import LineFiles, plain
from fed.tracking.log import Log
from fed.tracking.metrics import (
    COMMUNICATION,
    EVERYONE,
    FAILURE,
    MARGINS,
    METRICS,
    PRIVACY,
    SAMPLES,
    SUMMARY,
    TIMING,
    Line,
    _best,
    _means,
    read_metrics,
)
from fed.tracking.progress import Display
from fed.tracking.stopwatch import Stopwatch

HPARAM_METRICS = tuple(f"test/{name}" for name in ("accuracy", "margin", "loss", "kl"))  # shown beside the settings


class Tracker(Log):
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
        self._files = LineFiles(run_dir)
        self._events = EventFiles(run_dir / "tensorboard") if tensorboard else None
        self._display = Display(console or Console(), num_rounds, clients_per_round)
        self._stopwatch = Stopwatch()
        self._round: _Round | None = None
        self._began = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """What is written so far, now on the disk, and what was counted."""
        return {
            "pairs": self.pairs,
            "seconds": self.seconds(),
            "wall_seconds": time.perf_counter() - self._began,
            "files": self._files.state_dict(),
            "events": self._events.state_dict() if self._events else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there: what was written later is cut off."""
        self.pairs = state["pairs"]
        self._stopwatch.set(state["seconds"])
        self._began = time.perf_counter() - state["wall_seconds"]
        self._files.load_state_dict(state["files"])
        if self._events and state["events"] is not None:
            self._events.load_state_dict(state["events"])

    def start_over(self) -> None:
        """Forget what an earlier process wrote."""
        events = self._events.state_dict() if self._events else {}
        state = {"pairs": 0, "seconds": {}, "wall_seconds": 0.0, "files": {}, "events": {**events, "sizes": {}}}
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

    def evaluated(
        self,
        server_round: int,
        margins: Sequence[float] = (),
        samples: Sequence[Mapping[str, str]] = (),
        *,
        who: str = "server",
    ) -> None:
        """Record when an evaluation was done, the reward margin of each test pair, and responses drawn for it."""
        whose = {"round": server_round, "who": who}
        self._files.write(TIMING, {**whose, "pairs": self.pairs, "wall_seconds": time.perf_counter() - self._began})
        if margins:
            # Seven digits are more than float32 has; the sign, which decides accuracy, stays.
            self._files.write(MARGINS, {**whose, "split": "test", "margins": [float(f"{x:.7g}") for x in margins]})
        for sample in samples:
            self._files.write(SAMPLES, {**whose, **sample})
        if samples and self._events:
            self._write_texts("Server" if who == "server" else who.capitalize(), samples, server_round)

    def communication(self, server_round: int, sent: int, received: int) -> None:
        """Record the bytes of all arrays that the server sent in a round, and of those it received."""
        metrics = {"bytes_sent": sent, "bytes_received": received}
        self._append("server", server_round, COMMUNICATION, metrics)
        self._write_events(
            "Server", {f"{COMMUNICATION}/{name}": value for name, value in metrics.items()}, server_round
        )

    def privacy(self, server_round: int, spent: Mapping[str, float], remarks: Sequence[str] = ()) -> None:
        """Record what the rounds so far cost of the clients' privacy; remarks are told after the round's line."""
        self._append("server", server_round, PRIVACY, spent)
        self._write_events("Server", {f"{PRIVACY}/{name}": value for name, value in spent.items()}, server_round)
        self._enter(server_round).epsilon = float(spent["epsilon"])
        self._enter(server_round).remarks = remarks

    def everyone(self) -> None:
        """Record the means over clients that trained alone, with standard deviations, under `EVERYONE`."""
        by_round: dict[int, list[Line]] = {}
        began: dict[str, int] = {}  # pairs that others had trained when a client's first round began
        for line in read_metrics(self._run_dir):
            if line.split == "test" and line.who.startswith("client-"):
                by_round.setdefault(line.server_round, []).append(line)
                began.setdefault(line.who, line.pairs)
        for server_round, lines in sorted(by_round.items()):
            metrics = _means([line.metrics for line in lines])
            pairs = sum(line.pairs - began[line.who] for line in lines)
            whose = {"round": server_round, "who": EVERYONE, "split": "test", "pairs": pairs}
            self._write_line({**whose, **metrics})
            self._write_events("Server", {f"test/{name}": value for name, value in metrics.items()}, server_round)

    def settings(self, values: Mapping[str, object]) -> None:
        """Tell TensorBoard's hparams plug-in what the run was started with."""
        if self._events:
            self._write_summaries(_hparams(values, HPARAM_METRICS)[:2], 0)

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

    def end_round(self) -> None:
        """Print the round's line: its validation, test and client figures came one by one.

        Whatever is told of another round does so too.
        """
        if self._round:
            self._display.print_line(self._round.server_round, self._round.texts(), self._pairs_per_second())
            for remark in self._round.remarks:
                self._display.print_remark(self._round.server_round, remark)
        self._round = None

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Account wall time to `name`; time within a nested phase belongs to the nested one only."""
        return self._stopwatch.phase(name)

    def summary(self, **extra: object) -> dict[str, Any]:
        """Write `summary.json` and return it.

        `final` holds the last server line of each split and `best` the most accurate one. Seconds are those of the
        whole run; memory (10^9 bytes) is that of this process. What was never measured is left out. `extra` is added at
        the top level and wins over a key of the same name.
        """
        self.end_round()
        every = read_metrics(self._run_dir)
        lines = [line for line in every if line.who in ("server", EVERYONE) and line.split != COMMUNICATION]
        travelled = [line.metrics for line in every if line.split == COMMUNICATION]
        sums = {way: sum(metrics[f"bytes_{way}"] for metrics in travelled) for way in ("sent", "received")}
        failures = Counter(line.who for line in every if line.split == FAILURE)
        rate = self._pairs_per_second()
        report = {
            "final": {line.split: line.values() for line in lines},
            "best": _best(lines),
            "pairs": self.pairs,
            **({"bytes": sums} if travelled else {}),
            **({"failures": failures} if failures else {}),
            **({} if rate is None else {"pairs_per_second": rate}),
            "seconds": self.seconds(),
            "wall_seconds": time.perf_counter() - self._began,
            "peak_memory_gb": peak_memory() / 1e9,
            **extra,
        }
        if self._events:
            self._write_summaries(_hparams({}, ())[2:], 0)
        found: dict[str, Any] = plain(report)
        (self._run_dir / SUMMARY).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return found

    def close(self) -> None:
        """Bring everything to the disk and give the terminal back; closing twice is harmless."""
        self.end_round()
        self._display.close()
        self._files.close()
        if self._events:
            self._events.close()

    def _append(self, who: str, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        self._write_line({"round": server_round, "who": who, "split": split, "pairs": self.pairs, **metrics})

    def _write_line(self, line: Mapping[str, object]) -> None:
        self._files.write(METRICS, line)

    def _write_events(self, folder: str, tags: Mapping[str, float], step: int, *, flush: bool = False) -> None:
        if self._events:
            with writing(self._run_dir / "tensorboard" / folder):
                self._events.write(folder, tags, step)
                if flush:
                    self._events.flush()

    def _write_summaries(self, summaries: Iterable[Any], step: int, folder: str = "Server") -> None:
        assert self._events
        with writing(self._run_dir / "tensorboard" / folder):
            for summary in summaries:
                self._events.add(folder, summary, step)
            self._events.flush()

    def _write_texts(self, folder: str, samples: Sequence[Mapping[str, str]], step: int) -> None:
        from tensorboardX.summary import text

        tables = (text(f"{whose}_samples", _table(samples, whose)) for whose in ("policy", "reference"))
        self._write_summaries(tables, step, folder)

    def _enter(self, server_round: int) -> "_Round":
        if self._round is None or self._round.server_round != server_round:
            self.end_round()
            self._round = _Round(server_round)
        return self._round

    def _pairs_per_second(self) -> float | None:
        seconds = self.seconds().get("train", 0.0)
        return self.pairs / seconds if self.pairs and seconds else None


def _hparams(values: Mapping[str, object], metrics: Iterable[str]) -> tuple[Any, Any, Any]:
    """The hparams plug-in's records: of the experiment, of the session's start and of its end."""
    from tensorboardX.summary import hparams

    return hparams(dict(values), dict.fromkeys(metrics))  # type: ignore[no-any-return]


def _table(samples: Sequence[Mapping[str, str]], whose: str) -> str:
    """Markdown, in which TensorBoard shows text: a row per prompt, with each of its own lines kept."""

    def cell(value: str) -> str:
        text = html.escape(value).replace("\\", "\\\\")
        return "".join(f"\\{c}" if c in "|*_`[]#" else c for c in text).strip().replace("\n", "<br>")

    rows = [f"| {cell(sample['prompt'])} | {cell(sample[whose])} |" for sample in samples]
    return "\n".join([f"| prompt | {whose} |", "|---|---|", *rows])


@dataclass
class _Round:
    """What is known of the current round: metrics by split, and accuracies by split and client."""

    server_round: int
    server: dict[str, Mapping[str, float]] = field(default_factory=dict)
    clients: dict[str, dict[int, float]] = field(default_factory=dict)
    failed: int = 0
    epsilon: float | None = None
    remarks: Sequence[str] = ()

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
        if self.epsilon is not None:
            yield "epsilon", self.epsilon, None
