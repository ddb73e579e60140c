"""`Tracker`: the log that records a run in its `.jsonl` files, TensorBoard, `summary.json` and on the console."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from fed.cpu.runtime import peak_memory
from fed.tracking.line_files import LineFiles, plain
from fed.tracking.log import Log
from fed.tracking.metrics import (
    COMMUNICATION,
    EVERYONE,
    FAILURE,
    PRIVACY,
    all_tie,
    means_over_clients,
    read_metrics,
    results,
)
from fed.tracking.progress import Display, RoundFigures
from fed.tracking.run_files import FAILURES, MARGINS, METRICS, SAMPLES, SUMMARY, TENSORBOARD, TIMING
from fed.tracking.stopwatch import Stopwatch
from fed.tracking.tensorboard import TensorBoard


class Tracker(Log):
    """The log of the first process, and the only writer of metrics.

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
        self._tensorboard = TensorBoard(run_dir / TENSORBOARD, enabled=tensorboard)
        self._display = Display(console or Console(), num_rounds, clients_per_round)
        self._stopwatch = Stopwatch()
        self._round: RoundFigures | None = None
        self._began = time.perf_counter()

    # Reports of clients

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """Show that a client is about to train `pairs` pairs, every epoch counted."""
        self._enter(server_round)
        self._display.start_client(server_round, client_id, pairs)

    def advance(self, pairs: int) -> None:
        """Count pairs that were just trained."""
        self.pairs += pairs
        self._display.advance(pairs, self._pairs_per_second())

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Write TensorBoard values of one client at its update number `step`; keys are complete tags.

        Training values reach the disk within seconds of the next call, the rarer "eval" values at once.
        """
        self._tensorboard.scalars(f"Client-{client_id}", metrics, step, flush=split == "eval")

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Record the metrics that one client reported after its training or evaluation in a round."""
        self._append(f"client-{client_id}", server_round, split, metrics)
        if "accuracy" not in metrics:
            return
        if split == "validation" and not all_tie(metrics):
            self._tensorboard.scalars("Server", {f"acc/client-{client_id}": metrics["accuracy"]}, server_round)
        self._enter(server_round).clients.setdefault(split, {})[client_id] = metrics

    def failed(self, client_id: int, server_round: int, reason: str, details: str) -> None:
        """Record that a client is left out of a round, and why; `details`, a traceback, go to `failures.log`."""
        self._append(f"client-{client_id}", server_round, FAILURE, {"reason": reason})
        self._enter(server_round).failed += 1
        self._display.print_failure(server_round, client_id, reason)
        if details:
            with (self._run_dir / FAILURES).open("a", encoding="utf-8") as file:
                file.write(f"round {server_round}, client-{client_id}: {details}\n")

    # Reports of the server

    def server(self, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Record an evaluation of the global model; round 0 is the model before training."""
        self._append("server", server_round, split, metrics)
        drawn = _drawn(metrics)
        tags = {f"{split}/{name}": value for name, value in drawn.items()}
        if split == "validation" and "accuracy" in drawn:
            tags["avg_acc/server"] = drawn["accuracy"]
        self._tensorboard.scalars("Server", tags, server_round, flush=True)
        self._enter(server_round).server[split] = {name: float(value) for name, value in metrics.items()}
        if split in ("validation", "test") and "accuracy" in drawn:
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
        self._files.write(TIMING, {**whose, "pairs": self.pairs, "wall_seconds": self._wall_seconds()})
        if margins:
            # Seven digits are more than float32 has; the sign, which decides accuracy, stays.
            self._files.write(MARGINS, {**whose, "split": "test", "margins": [float(f"{x:.7g}") for x in margins]})
        for sample in samples:
            self._files.write(SAMPLES, {**whose, **sample})
        if samples:
            self._tensorboard.samples("Server" if who == "server" else who.capitalize(), samples, server_round)

    def communication(self, server_round: int, sent: int, received: int) -> None:
        """Record the bytes of all arrays that the server sent and received in a round."""
        metrics = {"bytes_sent": sent, "bytes_received": received}
        self._append("server", server_round, COMMUNICATION, metrics)
        tags = {f"{COMMUNICATION}/{name}": value for name, value in metrics.items()}
        self._tensorboard.scalars("Server", tags, server_round)

    def privacy(self, server_round: int, spent: Mapping[str, float], remarks: Sequence[str]) -> None:
        """Record the privacy budget spent so far; `remarks` are printed after the round's line."""
        self._append("server", server_round, PRIVACY, spent)
        tags = {f"{PRIVACY}/{name}": value for name, value in spent.items()}
        self._tensorboard.scalars("Server", tags, server_round)
        self._enter(server_round).epsilon = float(spent["epsilon"])
        self._enter(server_round).remarks += remarks

    def remark(self, server_round: int, text: str) -> None:
        """Print the text after the round's line."""
        self._enter(server_round).remarks.append(text)

    def clients_done(self, server_round: int) -> None:
        """Close the round's reports: `avg_acc/client` is the plain mean over the clients that reported."""
        current = self._enter(server_round)
        self._tensorboard.scalars("Server", {"clients/failed": current.failed}, server_round)
        found = current.clients.get("validation", {}).values()
        if found and not all(map(all_tie, found)):
            tags = {"avg_acc/client": fmean(metrics["accuracy"] for metrics in found)}
            self._tensorboard.scalars("Server", tags, server_round, flush=True)
        self._display.end_visit()

    def end_round(self) -> None:
        """Print the round's line; a report of another round does so too."""
        if self._round:
            self._display.print_line(self._round.server_round, self._round.texts(), self._pairs_per_second())
            for remark in self._round.remarks:
                self._display.print_remark(self._round.server_round, remark)
        self._round = None

    # Reports of the run

    def settings(self, values: Mapping[str, object]) -> None:
        """Show the settings in TensorBoard's hparams plug-in."""
        self._tensorboard.begin(values)

    def reference(self, pairs: int, total: int) -> None:
        """Show how many pairs have their reference log-probabilities; nothing is recorded."""
        self._display.reference(pairs, total)

    def everyone(self) -> None:
        """Record the means over clients that trained alone, with standard deviations, under `EVERYONE`."""
        for server_round, pairs, metrics in list(means_over_clients(read_metrics(self._run_dir))):
            whose = {"round": server_round, "who": EVERYONE, "split": "test", "pairs": pairs}
            self._files.write(METRICS, {**whose, **metrics})
            tags = {f"test/{name}": value for name, value in _drawn(metrics).items()}
            self._tensorboard.scalars("Server", tags, server_round)

    def summary(self, **extra: object) -> dict[str, Any]:
        """Write `summary.json` and return it: see `fed.tracking.metrics.results`, then time and memory.

        Seconds are those of the whole run; memory (10^9 bytes) is that of this process. `extra` is added at the top
        level and replaces a key of the same name.
        """
        self.end_round()
        rate = self._pairs_per_second()
        report = {
            **results(read_metrics(self._run_dir), self.pairs),
            **({} if rate is None else {"pairs_per_second": rate}),
            "seconds": self.seconds(),
            "wall_seconds": self._wall_seconds(),
            "peak_memory_gb": peak_memory() / 1e9,
            **extra,
        }
        self._tensorboard.end()
        found: dict[str, Any] = plain(report)
        (self._run_dir / SUMMARY).write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return found

    def close(self) -> None:
        """Bring everything to the disk and release the terminal; closing twice is harmless."""
        self.end_round()
        self._display.close()
        self._files.close()
        self._tensorboard.close()

    # Time

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Account wall time to `name`; time within a nested phase belongs to the nested one only."""
        return self._stopwatch.phase(name)

    def seconds(self) -> dict[str, float]:
        """Return the seconds so far by phase."""
        return self._stopwatch.seconds()

    def spend(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by phase that an earlier process spent."""
        before = self.seconds()
        self._stopwatch.set({name: before.get(name, 0.0) + seconds.get(name, 0.0) for name in {**before, **seconds}})

    # Resume

    def state_dict(self) -> dict[str, Any]:
        """Return the sizes of all files, now on the disk, and the counters."""
        return {
            "pairs": self.pairs,
            "seconds": self.seconds(),
            "wall_seconds": self._wall_seconds(),
            "files": self._files.state_dict(),
            "events": self._tensorboard.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counters and truncate all files to the sizes that `state_dict` returned."""
        self._restore(state["pairs"], state["seconds"], state["wall_seconds"])
        self._files.load_state_dict(state["files"])
        self._tensorboard.load_state_dict(state["events"])

    def start_over(self) -> None:
        """Remove what an earlier process wrote."""
        self._restore(0, {}, 0.0)
        self._files.load_state_dict({})
        self._tensorboard.start_over()

    def _restore(self, pairs: int, seconds: Mapping[str, float], wall_seconds: float) -> None:
        self.pairs = pairs
        self._stopwatch.set(seconds)
        self._began = time.perf_counter() - wall_seconds
        self._display.went_before(wall_seconds)

    def _append(self, who: str, server_round: int, split: str, metrics: Mapping[str, object]) -> None:
        line = {"round": server_round, "who": who, "split": split, "pairs": self.pairs, **metrics}
        self._files.write(METRICS, line)

    def _enter(self, server_round: int) -> RoundFigures:
        """Return the figures of this round; the line of another round is printed first."""
        if self._round is None or self._round.server_round != server_round:
            self.end_round()
            self._round = RoundFigures(server_round)
        return self._round

    def _pairs_per_second(self) -> float | None:
        seconds = self.seconds().get("train", 0.0)
        return self.pairs / seconds if self.pairs and seconds else None

    def _wall_seconds(self) -> float:
        return time.perf_counter() - self._began


def _drawn(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics without the accuracy and its interval where all pairs tie: those measure nothing then."""
    return {name: value for name, value in metrics.items() if not (name.startswith("accuracy") and all_tie(metrics))}
