"""What stands in a run's other processes for the tracker of its first one."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

# A method of the tracker, its positional arguments and its named ones.
Event = tuple[str, tuple[Any, ...], dict[str, Any]]


def replay(events: Iterable[Event], log: Any) -> None:
    """Tell a log what another was told."""
    for method, arguments, named in events:
        getattr(log, method)(*arguments, **named)


class Relay:
    """Takes what the tracker takes; what it is told of clients waits for the first process to fetch it.

    Args:
        keeps: Whether this process speaks for a group whose clients the first process does not train.
    """

    def __init__(self, *, keeps: bool = False) -> None:
        self._keeps = keeps
        self._events: list[Event] = []

    def fetch(self) -> list[Event]:
        """What was told since the last time."""
        events, self._events = self._events, []
        return events

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Metrics of the round."""
        self._keep("client", client_id, server_round, split, dict(metrics))

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of one optimizer step."""
        self._keep("update", client_id, split, dict(metrics), step=step)

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """About to train that many pairs."""
        self._keep("start_client", server_round, client_id, pairs)

    def advance(self, pairs: int) -> None:
        """Pairs trained now."""
        self._keep("advance", pairs)

    def failed(self, client_id: int, server_round: int, reason: str, details: str) -> None:
        """A client is left out of a round."""
        self._keep("failed", client_id, server_round, reason, details)

    def reference(self, pairs: int, total: int) -> None:
        """The first process knows that itself."""

    def server(self, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """The first process has the same metrics."""

    def evaluated(self, server_round: int, *what: Any, **more: Any) -> None:
        """The first process has the same."""

    def communication(self, server_round: int, sent: int, received: int) -> None:
        """The first process has the same numbers."""

    def privacy(self, server_round: int, spent: Mapping[str, float], remarks: Sequence[str] = ()) -> None:
        """The first process has the same numbers."""

    def everyone(self) -> None:
        """The first process knows all of them."""

    def settings(self, values: Mapping[str, object]) -> None:
        """The first process has the same."""

    def clients_done(self, server_round: int) -> None:
        """The first process knows that itself."""

    def seconds(self) -> dict[str, float]:
        """Only the first process measures its time."""
        return {}

    def spend(self, seconds: Mapping[str, float]) -> None:
        """Only the first process measures its time."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing lasts here."""
        return {}

    def start_over(self) -> None:
        """Nothing lasts here."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing lasts here."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Only the first process measures its time."""
        return nullcontext()

    def summary(self, **extra: object) -> dict[str, Any]:
        """There is none."""
        return {}

    def _keep(self, method: str, *arguments: Any, **named: Any) -> None:
        if self._keeps:
            self._events.append((method, arguments, named))


class Log(Protocol):
    """The part of `fed.tracking.tracker.Tracker` that is told of clients, or what stands for it."""

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """About to train that many pairs."""

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Metrics of the round."""

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of one optimizer step."""

    def advance(self, pairs: int) -> None:
        """Pairs trained now."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time spent inside belongs to this phase."""

    def seconds(self) -> dict[str, float]:
        """Time by phase so far."""

    def spend(self, seconds: Mapping[str, float]) -> None:
        """That much more time was spent, by phase, before this process began."""


class Recorder:
    """A log that hands on what it is told of clients and can say what that was."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._events: list[Event] = []
        self._before: dict[str, float] = {}

    def begin(self, events: Sequence[Event] = ()) -> None:
        """Forget what was, but for these events of a process that was stopped, which the log is told now."""
        self._events, self._before = [], self._log.seconds()
        self.replay(events)
        # Time is in the log now, and the client will say once more that it starts.
        self._events = [event for event in events if event[0] not in ("spend", "start_client")]

    def events(self) -> list[Event]:
        """What was told since `begin`, and the time that passed."""
        spent = {name: seconds - self._before.get(name, 0.0) for name, seconds in self._log.seconds().items()}
        return [*self._events, ("spend", (spent,), {})]

    def replay(self, events: Sequence[Event]) -> None:
        """Tell the log what it was told then."""
        replay(events, self._log)

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """About to train that many pairs."""
        self._pass_on("start_client", server_round, client_id, pairs)

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Metrics of the round."""
        self._pass_on("client", client_id, server_round, split, dict(metrics))

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of one optimizer step."""
        self._pass_on("update", client_id, split, dict(metrics), step=step)

    def advance(self, pairs: int) -> None:
        """Pairs trained now."""
        self._pass_on("advance", pairs)

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time spent inside belongs to this phase."""
        return self._log.phase(name)

    def _pass_on(self, method: str, *arguments: Any, **named: Any) -> None:
        self._events.append((method, arguments, named))
        getattr(self._log, method)(*arguments, **named)


class ConsoleLog:
    """The log of a client whose metrics nobody else sees: a line when a round begins, a line with what came out."""

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """About to train that many pairs."""
        _say(f"round {server_round}: client {client_id} trains {pairs} pairs")

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Metrics of the round."""
        told = ", ".join(f"{name} {metrics[name]:.3f}" for name in ("loss", "accuracy", "margin") if name in metrics)
        _say(f"round {server_round}: client {client_id} {split} {told}")

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        """Metrics of one optimizer step."""

    def advance(self, pairs: int) -> None:
        """Pairs trained now."""

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Time spent inside belongs to this phase."""
        return nullcontext()


class NoLog(ConsoleLog):
    """The log of a simulated client; what its replies tell is all."""

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        """About to train that many pairs."""

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Metrics of the round."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
