"""`Log`: everything a run reports while it runs. Its methods do nothing; subclasses override what they record."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

# The name of a method of `Log`, its positional arguments and its named ones.
Event = tuple[str, tuple[Any, ...], dict[str, Any]]


class Log:
    """A log that ignores every report; as a context manager it closes itself at the end."""

    # Reports of clients

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """Report that a client is about to train `pairs` pairs, every epoch counted."""

    def advance(self, pairs: int) -> None:
        """Report that `pairs` more pairs were trained."""

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Report a client's metrics at its optimizer step number `step`; keys are complete TensorBoard tags."""

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Report a client's metrics after its training or evaluation in a round."""

    def failed(self, client_id: int, server_round: int, reason: str, details: str) -> None:
        """Report that a client is left out of a round; `details` is a traceback or empty."""

    # Reports of the server

    def server(self, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Report metrics of the global model after `server_round` aggregations."""

    def evaluated(
        self,
        server_round: int,
        margins: Sequence[float] = (),
        samples: Sequence[Mapping[str, str]] = (),
        *,
        who: str = "server",
    ) -> None:
        """Report that an evaluation is done, with each test pair's reward margin and the responses drawn for it."""

    def communication(self, server_round: int, sent: int, received: int) -> None:
        """Report the bytes of all arrays that the server sent and received in a round."""

    def privacy(self, server_round: int, spent: Mapping[str, float], remarks: Sequence[str]) -> None:
        """Report the privacy budget that the rounds so far have spent; `remarks` are shown to the user."""

    def remark(self, server_round: int, text: str) -> None:
        """Report something about a round that the user should know."""

    def clients_done(self, server_round: int) -> None:
        """Report that every client of the round has reported."""

    def end_round(self) -> None:
        """Report that nothing more belongs to the current round."""

    # Reports of the run

    def settings(self, values: Mapping[str, object]) -> None:
        """Report the settings that the run starts with, by dotted name."""

    def reference(self, pairs: int, total: int) -> None:
        """Report that `pairs` of `total` pairs have their reference log-probabilities."""

    def everyone(self) -> None:
        """Report that all clients of a run in `mode=local` are done."""

    def summary(self, **extra: object) -> dict[str, Any]:
        """Write the run's summary with `extra` added, and return it."""
        return {}

    def close(self) -> None:
        """Bring everything to the disk; closing twice is harmless."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Time

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Account the time spent inside to the phase `name`."""
        return nullcontext()

    def seconds(self) -> dict[str, float]:
        """Return the seconds so far by phase."""
        return {}

    def spend(self, seconds: Mapping[str, float]) -> None:
        """Add seconds by phase that an earlier process spent."""

    # Resume

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue this log."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned; what was written later is removed."""

    def start_over(self) -> None:
        """Remove what an earlier process wrote."""

    # Reports of other processes

    def fetch(self) -> list[Event]:
        """Return the reports that wait for the first process, and forget them."""
        return []

    def replay(self, events: Iterable[Event]) -> None:
        """Report what another log received."""
        for method, arguments, named in events:
            getattr(self, method)(*arguments, **named)


class _EventLog(Log):
    """A log that takes every report of a client as one event."""

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """Take the start of a client's training."""
        self._take(("start_client", (server_round, client_id, pairs), {}))

    def advance(self, pairs: int) -> None:
        """Take a number of trained pairs."""
        self._take(("advance", (pairs,), {}))

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Take the metrics of one optimizer step."""
        self._take(("update", (client_id, split, dict(metrics)), {"step": step}))

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Take a client's metrics of a round."""
        self._take(("client", (client_id, server_round, split, dict(metrics)), {}))

    def failed(self, client_id: int, server_round: int, reason: str, details: str) -> None:
        """Take the failure of a client."""
        self._take(("failed", (client_id, server_round, reason, details), {}))

    def _take(self, event: Event) -> None:
        raise NotImplementedError


class Relay(_EventLog):
    """The log of every process but the first, which fetches the clients' reports from it.

    Args:
        speaks: True if this process speaks for clients that the first process does not train; else nothing is stored.
    """

    def __init__(self, *, speaks: bool = False) -> None:
        self._speaks = speaks
        self._events: list[Event] = []

    def fetch(self) -> list[Event]:
        """Return the events since the last call."""
        events, self._events = self._events, []
        return events

    def _take(self, event: Event) -> None:
        if self._speaks:
            self._events.append(event)


class Recorder(_EventLog):
    """A log that records what a client reports while it passes it on to another log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._events: list[Event] = []
        self._before: dict[str, float] = {}

    def begin(self, events: Sequence[Event] = ()) -> None:
        """Start a new record, with the events of a stopped process; those are reported to the other log now."""
        self._events, self._before = [], self._log.seconds()
        self.replay(events)
        # The time is in the log now, and the client will report its start once more.
        self._events = [event for event in events if event[0] not in ("spend", "start_client")]

    def events(self) -> list[Event]:
        """Return the events since `begin`, and the time that passed."""
        spent = {name: seconds - self._before.get(name, 0.0) for name, seconds in self._log.seconds().items()}
        return [*self._events, ("spend", (spent,), {})]

    def replay(self, events: Iterable[Event]) -> None:
        """Report events to the other log without recording them."""
        self._log.replay(events)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Account the time spent inside in the other log."""
        return self._log.phase(name)

    def _take(self, event: Event) -> None:
        self._events.append(event)
        self._log.replay([event])


class ConsoleLog(Log):
    """The log of a client on its owner's machine: one line when a round begins and one per result."""

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """Print the number of pairs that the client is about to train."""
        _say(f"round {server_round}: client {client_id} trains {pairs} pairs")

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Print the client's loss, accuracy and margin."""
        shown = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("loss", "accuracy", "margin") if name in metrics)
        _say(f"round {server_round}: client {client_id} {split} {shown}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
