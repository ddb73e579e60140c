"""What a client that is alone on its machine tells of its training, on its own console."""

import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext


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
