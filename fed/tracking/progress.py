"""The console of a run: one line per round and, on a terminal, a live bar below them."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fed.tracking.metrics import num_tied, untied_accuracy

LINE_SECONDS = 30.0  # without a terminal, the longest silence while a client trains


class Display:
    """A console display of rounds as lines and clients as a bar.

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
        self._start: tuple[float, int] | None = None  # the time, and the visits before it: not 0 after a resume

    def went_before(self, seconds: float) -> None:
        """Count the time elapsed from so many seconds ago, as of a run that is resumed."""
        self._began = time.monotonic() - seconds

    def reference(self, pairs: int, total: int) -> None:
        """Show how many of all pairs have their reference log-probabilities: on a terminal by a bar of their own."""
        elapsed = time.monotonic() - self._began
        left = f"left {_clock(elapsed * (total - pairs) / pairs)}"
        what = f"reference log-probs  {pairs:,} of {total:,} pairs"
        if self._console.is_interactive:
            self._bar = self._bar or self._new_bar(total)
            self._bar.update(self._bar.task_ids[0], completed=pairs, description=what, status=left)
            if pairs == total:
                self.close()
        elif self._is_silent():
            self._print(what, [f"elapsed {_clock(elapsed)}", left])

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """Begin the visit of a client."""
        self._begin(max(server_round - 1, 0))
        self._visits += 1
        self._visit = _Visit(server_round, client_id, max(pairs, 1))
        if self._console.is_interactive:
            self._bar = self._bar or self._new_bar(self._num_rounds * self._clients_per_round)
            self._update_bar(None)

    def advance(self, pairs: int, pairs_per_second: float | None) -> None:
        """Show that `pairs` more pairs of this visit are done."""
        self._visit.trained += pairs
        if self._bar:
            self._update_bar(pairs_per_second)
        elif self._is_silent():
            visit = self._visit
            parts = [f"client-{visit.client_id}  {visit.trained} of {visit.pairs} pairs"]
            self._print(self._round(visit.server_round), [*parts, *self._pace(pairs_per_second)])

    def end_visit(self) -> None:
        """End the visit, however many pairs were counted."""
        self._visit.trained = self._visit.pairs

    def print_line(self, server_round: int, texts: Iterable[str], pairs_per_second: float | None) -> None:
        """Print the line of a finished round."""
        self._begin(server_round)  # a remote client may be heard of only when it replies
        self._print(self._round(server_round), [*texts, *self._pace(pairs_per_second)])

    def print_failure(self, server_round: int, client_id: int, reason: str) -> None:
        """Print that a client is left out."""
        self._print(f"{self._round(server_round)}  client-{client_id} is left out: {reason}", [])

    def print_remark(self, server_round: int, remark: str) -> None:
        """Print a remark on a round."""
        self._print(f"{self._round(server_round)}  {remark}", [])

    def close(self) -> None:
        """Release the terminal."""
        if self._bar:
            self._bar.stop()
        self._bar = None

    def _begin(self, rounds: int) -> None:
        """Note that training begins after `rounds` rounds, unless it has begun."""
        if self._start is None:
            self._start = time.monotonic(), rounds * self._clients_per_round

    def _is_silent(self) -> bool:
        return time.monotonic() >= self._last_line + LINE_SECONDS

    def _round(self, server_round: int) -> str:
        return f"round {server_round}/{self._num_rounds}"

    def _print(self, what: str, parts: Iterable[str]) -> None:
        line = "  ".join([what, *parts])
        # A file or pipe counts as 80 columns wide: soft_wrap keeps a long line in one piece.
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._last_line = time.monotonic()

    def _pace(self, pairs_per_second: float | None) -> Iterator[str]:
        if pairs_per_second is not None:
            yield f"{pairs_per_second:,.{0 if pairs_per_second >= 10 else 2}f} pairs/s in training"
        yield f"elapsed {_clock(time.monotonic() - self._began)}"
        if (left := self._left()) is not None:
            yield f"left {_clock(left)}"

    def _left(self) -> float | None:
        since, visits_before = self._start or (0.0, 0)
        done = self._done()
        missing = self._num_rounds * self._clients_per_round - visits_before - done
        return max((time.monotonic() - since) * missing / done, 0.0) if done else None

    def _done(self) -> float:
        """Return the visits of this process, the current one as a fraction."""
        return self._visits - 1 + min(self._visit.trained / self._visit.pairs, 1.0) if self._visits else 0.0

    def _new_bar(self, total: int) -> Progress:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(16), TimeElapsedColumn())
        status = TextColumn("{task.fields[status]}", markup=False)
        bar = Progress(*columns, status, console=self._console, transient=True, refresh_per_second=4)
        bar.add_task("", total=total, status="")
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
            completed=(self._start[1] if self._start else 0) + self._done(),
            description=f"{self._round(self._visit.server_round)}  client-{self._visit.client_id}",
            status="  ".join([*rate, *accuracy, *left]),
        )


@dataclass
class RoundFigures:
    """The figures of the current round: metrics by split, and accuracies by split and client."""

    server_round: int
    server: dict[str, Mapping[str, float]] = field(default_factory=dict)
    clients: dict[str, dict[int, Mapping[str, float]]] = field(default_factory=dict)
    failed: int = 0
    epsilon: float | None = None
    remarks: list[str] = field(default_factory=list)

    def texts(self) -> Iterator[str]:
        """Yield the parts of the round's line."""
        last = next((split for split in ("test", "validation") if split in self.server), None)
        for split, metrics in self.server.items():
            if "accuracy" in metrics:
                yield _accuracy_text(split, [metrics], shows_interval=True)
            for name, shown in (("loss", "loss"), ("loss_per_token", "loss per token"), ("margin", "margin")):
                if name in metrics and (split == last or "accuracy" not in metrics):
                    yield f"{split} {shown} {metrics[name]:.3f}"
            if "win_rate_low" in metrics:
                low, high = metrics["win_rate_low"], metrics["win_rate_high"]
                whose = "clients' " if split == "held-out" else ""
                yield f"{whose}win rate {metrics['win_rate']:.3f} [{low:.3f}, {high:.3f}]"
        for split, found in self.clients.items():
            who = "clients'" if len(found) > 1 else f"client-{next(iter(found))}"
            yield f"{who} {_accuracy_text(split, list(found.values()))}"
        if self.epsilon is not None:
            yield f"epsilon {self.epsilon:.3f}"


@dataclass
class _Visit:
    """A client's training in one round."""

    server_round: int
    client_id: int
    pairs: int
    trained: int = 0


def _accuracy_text(split: str, found: Sequence[Mapping[str, float]], *, shows_interval: bool = False) -> str:
    """Return the mean accuracy in words, with the number of ties if there are any.

    Ties count as wrong in an evaluation. While a client trains they are no error of its: they are left out.
    """
    pairs, tied = sum(int(metrics.get("examples", 0)) for metrics in found), num_tied(found)
    untied = [accuracy for metrics in found if (accuracy := untied_accuracy(metrics)) is not None]
    if not untied:
        return f"{split} accuracy: all {f'{pairs:,} ' if pairs else ''}pairs tied"
    is_training = split == "train"
    text = f"{split} accuracy {fmean(untied if is_training else [metrics['accuracy'] for metrics in found]):.3f}"
    if shows_interval and "accuracy_low" in found[0]:
        text += f" [{found[0]['accuracy_low']:.3f}, {found[0]['accuracy_high']:.3f}]"
    if tied:
        text += (
            f" (without {tied:,} tied of {pairs:,} pairs)" if is_training else f" ({tied:,} of {pairs:,} pairs tied)"
        )
    return text


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
