"""What a run tells the world: `metrics.jsonl`, TensorBoard, the progress on the console and `summary.json`."""

import json
import math
import resource
import socket
import struct
import sys
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, BinaryIO, Literal, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

MAX_OPEN_EVENT_FILES = 64  # a thousand clients must not run into the limit on open files
FLUSH_SECONDS = 10.0  # how old the client curves in TensorBoard may be
LINE_SECONDS = 30.0  # without a terminal, the longest silence while a client trains


class Tracker:
    """The only writer of metrics; a context manager.

    Attributes:
        pairs: Pairs trained by all clients so far. A resumed run sets it before the first round.
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
        self._metrics = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._events = _EventFiles(run_dir / "tensorboard") if tensorboard else None
        self._display = _Display(console or Console(), num_rounds, clients_per_round)
        self._stopwatch = _Stopwatch()
        self._round: _Round | None = None
        self._began = time.perf_counter()
        self._pairs_of_process = 0  # unlike `pairs` without those from before a resume: their seconds are not known

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

    def clients_done(self, server_round: int) -> None:
        """Close the round's reports: `avg_acc/client` is the plain mean over the clients that reported."""
        accuracies = self._enter(server_round).clients.get("validation", {})
        if accuracies:
            self._write_events("Server", {"avg_acc/client": fmean(accuracies.values())}, server_round, flush=True)
        self._display.end_visit()

    def update(
        self, client_id: int, split: Literal["train", "eval"], metrics: Mapping[str, float], *, step: int
    ) -> None:
        """Write TensorBoard values of one client at its update number `step`; keys are complete tags.

        Training values reach the disk within FLUSH_SECONDS of the next call, the rarer "eval" values at once.
        """
        self._write_events(f"Client-{client_id}", metrics, step, flush=split == "eval")

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """Say that a client is about to train `pairs` pairs, every epoch counted."""
        self._enter(server_round)
        self._display.start_client(server_round, client_id, pairs)

    def advance(self, pairs: int) -> None:
        """Count pairs that were just trained."""
        self.pairs += pairs
        self._pairs_of_process += pairs
        self._display.advance(pairs, self._pairs_per_second())

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Account wall time to `name`; time within a nested phase belongs to the nested one only."""
        return self._stopwatch.phase(name)

    def summary(self, **extra: object) -> dict[str, Any]:
        """Write `summary.json` and return it.

        `final` holds the last server line of each split and `best` the most accurate one. Seconds, pairs per second and
        memory (10^9 bytes) are those of this process, so a resumed run reports its last part. What was never measured
        is left out. `extra` is added at the top level and wins over a key of the same name.
        """
        self._print_round()
        lines = [line for line in read_metrics(self._run_dir) if line.who == "server"]
        rate = self._pairs_per_second()
        report = {
            "final": {line.split: line.values() for line in lines},
            "best": _best(lines),
            "pairs": self.pairs,
            **({} if rate is None else {"pairs_per_second": rate}),
            "seconds": self._stopwatch.seconds(),
            "wall_seconds": time.perf_counter() - self._began,
            "peak_memory_gb": _peak_memory_gb(),
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
        line = {"round": server_round, "who": who, "split": split, "pairs": self.pairs, **metrics}
        self._metrics.write(json.dumps(_plain(line), allow_nan=False) + "\n")
        self._metrics.flush()

    def _write_events(self, folder: str, tags: Mapping[str, float], step: int, *, flush: bool = False) -> None:
        if self._events:
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
        seconds = self._stopwatch.seconds().get("train", 0.0)
        return self._pairs_of_process / seconds if self._pairs_of_process and seconds else None


@dataclass(frozen=True)
class Line:
    """One line of `metrics.jsonl`; a metric that was not finite is None."""

    server_round: int
    who: str
    split: str
    pairs: int
    metrics: Mapping[str, float | None]

    def values(self) -> dict[str, float | None]:
        """The numbers of the line."""
        return {"round": self.server_round, "pairs": self.pairs, **self.metrics}


def read_metrics(run_dir: Path) -> list[Line]:
    """Lines of `metrics.jsonl` in order; of a round that ran again after a resume, the later one."""
    path = run_dir / "metrics.jsonl"
    latest: dict[tuple[str, str, int], Line] = {}
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        row = json.loads(text)
        line = Line(row.pop("round"), row.pop("who"), row.pop("split"), row.pop("pairs"), row)
        key = (line.who, line.split, line.server_round)
        latest.pop(key, None)
        latest[key] = line
    return list(latest.values())


def _best(lines: Iterable[Line]) -> dict[str, dict[str, float | None]]:
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


def _peak_memory_gb() -> float:
    # Linux counts kibibytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


@dataclass
class _Round:
    """What is known of the current round: metrics by split, and accuracies by split and client."""

    server_round: int
    server: dict[str, Mapping[str, float]] = field(default_factory=dict)
    clients: dict[str, dict[int, float]] = field(default_factory=dict)

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

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._phases:
            self._seconds[self._phases[-1]] = self._seconds.get(self._phases[-1], 0.0) + now - self._since
        self._since = now


class _EventFiles:
    """One TensorBoard file per folder, the last used ones open.

    tensorboardX's `SummaryWriter` costs two threads and a pipe each and would start a new file whenever a client comes
    back; here the same records (its protos, its checksums) are appended to one file.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        self._open: OrderedDict[str, BinaryIO] = OrderedDict()
        self._next_flush = 0.0

    def write(self, folder: str, tags: Mapping[str, float], step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=float(value)) for tag, value in tags.items()]
        event = Event(wall_time=time.time(), step=step, summary=Summary(value=values))
        self._file(folder).write(_record(event.SerializeToString()))
        if time.monotonic() >= self._next_flush:
            self.flush()

    def flush(self) -> None:
        for file in self._open.values():
            file.flush()
        self._next_flush = time.monotonic() + FLUSH_SECONDS

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def _file(self, folder: str) -> BinaryIO:
        if folder in self._open:
            self._open.move_to_end(folder)
            return self._open[folder]
        while len(self._open) >= MAX_OPEN_EVENT_FILES:
            self._open.popitem(last=False)[1].close()
        self._open[folder] = file = _open_event_file(self._folder / folder / self._name)
        return file


def _open_event_file(path: Path) -> BinaryIO:
    from tensorboardX.proto.event_pb2 import Event

    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    if file.tell() == 0:
        file.write(_record(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString()))
    return file


def _record(data: bytes) -> bytes:
    """TFRecord: length, checksum of the length, data, checksum of the data."""
    from tensorboardX.record_writer import masked_crc32c

    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))


class _Display:
    """What a person sees: a line per round and, on a terminal, a live bar below them.

    Progress counts client visits, the current one by the share of its pairs, so the time left includes evaluation. It
    does not matter whether all clients take turns each round or, as in mode=local, one after the other runs all rounds.
    """

    def __init__(self, console: Console, num_rounds: int, clients_per_round: int) -> None:
        self.accuracy: float | None = None
        self._console = console
        self._num_rounds = num_rounds
        self._clients_per_round = clients_per_round
        self._began = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._visit = _Visit(0, 0, 1)
        self._visits = 0
        self._start = (0.0, 0)  # when training began, and how many visits were over: not 0 after a resume

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        if not self._visits:
            self._start = time.monotonic(), max(server_round - 1, 0) * self._clients_per_round
        self._visits += 1
        self._visit = _Visit(server_round, client_id, max(pairs, 1))
        if self._console.is_interactive:
            self._bar = self._bar or self._new_bar()
            self._update_bar(None)

    def advance(self, pairs: int, pairs_per_second: float | None) -> None:
        self._visit.trained += pairs
        if self._bar:
            self._update_bar(pairs_per_second)
        elif time.monotonic() >= self._last_line + LINE_SECONDS:
            visit = self._visit
            parts = [f"client-{visit.client_id}  {visit.trained} of {visit.pairs} pairs"]
            self._print(visit.server_round, [*parts, *self._pace(pairs_per_second)])

    def end_visit(self) -> None:
        self._visit.trained = self._visit.pairs

    def print_line(
        self, server_round: int, texts: Iterable[tuple[str, float, float | None]], pairs_per_second: float | None
    ) -> None:
        plus_minus = "+/-" if self._console.options.ascii_only else "±"
        parts = [
            f"{label} {value:.3f}" + ("" if error is None else f" {plus_minus} {error:.3f}")
            for label, value, error in texts
        ]
        self._print(server_round, [*parts, *self._pace(pairs_per_second)])

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
        self._bar = None

    def _print(self, server_round: int, parts: Iterable[str]) -> None:
        line = "  ".join([f"round {server_round}/{self._num_rounds}", *parts])
        # A file or pipe counts as 80 columns wide: soft_wrap keeps a long line in one piece.
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._last_line = time.monotonic()

    def _pace(self, pairs_per_second: float | None) -> Iterator[str]:
        if pairs_per_second is not None:
            yield f"{pairs_per_second:,.{0 if pairs_per_second >= 10 else 2}f} pairs/s"
        yield f"elapsed {_clock(time.monotonic() - self._began)}"
        if (left := self._left()) is not None:
            yield f"left {_clock(left)}"

    def _left(self) -> float | None:
        since, visits_before = self._start
        done = self._done()
        missing = self._num_rounds * self._clients_per_round - visits_before - done
        return max((time.monotonic() - since) * missing / done, 0.0) if done else None

    def _done(self) -> float:
        """Visits of this process."""
        return self._visits - 1 + min(self._visit.trained / self._visit.pairs, 1.0) if self._visits else 0.0

    def _new_bar(self) -> Progress:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(16), TimeElapsedColumn())
        status = TextColumn("{task.fields[status]}", markup=False)
        bar = Progress(*columns, status, console=self._console, transient=True, refresh_per_second=4)
        bar.add_task("", total=self._num_rounds * self._clients_per_round, status="")
        bar.tasks[0].start_time = self._began
        bar.start()
        return bar

    def _update_bar(self, pairs_per_second: float | None) -> None:
        assert self._bar
        rate = [] if pairs_per_second is None else [f"{pairs_per_second:,.0f} pairs/s"]
        accuracy = [] if self.accuracy is None else [f"accuracy {self.accuracy:.3f}"]
        left = [] if (seconds := self._left()) is None else [f"left {_clock(seconds)}"]
        self._bar.update(
            self._bar.task_ids[0],
            completed=self._start[1] + self._done(),
            description=f"round {self._visit.server_round}/{self._num_rounds}  client-{self._visit.client_id}",
            status="  ".join([*rate, *accuracy, *left]),
        )


@dataclass
class _Visit:
    """A client at work, with `pairs` pairs to train in this round."""

    server_round: int
    client_id: int
    pairs: int
    trained: int = 0


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
