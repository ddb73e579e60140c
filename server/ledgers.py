"""The ledgers of `privacy=`: how much of the clients' privacy the rounds so far have spent."""

import functools
from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import Any, Protocol

from flwr.app import Message
from flwr.serverapp.strategy import Strategy

from fed.config.groups import PrivacySettings
from fed.privacy import epsilon


class Ledger(Protocol):
    """An account of what a federation has cost of its clients' privacy; a checkpoint keeps its state."""

    def spent(self) -> dict[str, float]:
        """Return `epsilon`, `delta`, `releases` and what else is known, for the log."""

    def is_exhausted(self) -> bool:
        """Return whether one more round would exceed `max_epsilon`."""

    def remarks(self) -> list[str]:
        """Return what the user must know about the last round."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the account."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""


class ClientLedger:
    """The ledger of local privacy: it counts how often each client was asked for a noisy update.

    A client that failed counts too: the server cannot know whether an answer that it did not get has left the client.
    """

    def __init__(self, settings: PrivacySettings, num_clients: int) -> None:
        self._settings, self._num_clients = settings, num_clients
        self._updates: Counter[int] = Counter()

    def watch(self, strategy: Strategy) -> None:
        """Become the strategy's ledger and count the clients that it asks to train."""
        configure = strategy.configure_train

        @functools.wraps(configure)
        def counted(*arguments: Any, **named: Any) -> list[Message]:
            messages = list(configure(*arguments, **named))
            self._updates.update(message.metadata.dst_node_id for message in messages)
            return messages

        # Set on the instance: a wrapper would hide the strategy's class, which says what the strategy can do.
        vars(strategy).update(configure_train=counted, privacy_ledger=self)

    def spent(self) -> dict[str, float]:
        """Return `epsilon` of the client that was asked most often, and `epsilon_mean` over all clients."""
        every = [self._epsilon(count) for count in self._updates.values()]
        every += [0.0] * (self._num_clients - len(every))
        most = max(self._updates.values(), default=0)
        return {
            "epsilon": self._epsilon(most),
            "epsilon_mean": fmean(every),
            "delta": self._settings.delta,
            "releases": most,
        }

    def is_exhausted(self) -> bool:
        """Return whether one more round would exceed `max_epsilon` for any client."""
        limit = self._settings.max_epsilon
        return limit is not None and self._epsilon(max(self._updates.values(), default=0) + 1) > limit

    def remarks(self) -> list[str]:
        """Return the remark that the run ends here, or an empty list."""
        return exhausted(self, self._settings)

    def state_dict(self) -> dict[str, Any]:
        """Return the number of rounds by node."""
        return {"asked": dict(self._updates)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        With fresh noise, the interrupted round may have left the clients and will leave them again: it is counted.
        """
        self._updates = Counter(state["asked"])
        if not self._settings.seeded_noise:
            self._updates.update(range(self._num_clients))

    def _epsilon(self, releases: int) -> float:
        return epsilon(self._settings.noise_multiplier, releases, self._settings.delta)


def exhausted(ledger: Ledger, settings: PrivacySettings) -> list[str]:
    """Return the remark that the run ends, if the ledger is exhausted."""
    text = f"one more round would exceed privacy.max_epsilon={settings.max_epsilon}: the run ends here"
    return [text] if ledger.is_exhausted() else []
