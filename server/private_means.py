"""Private means: Flower's wrappers that clip and add noise, each with the ledger of its releases."""

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import GaussianPrivacyEvent, PrivacyAccountant
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    Strategy,
)

from fed.config.groups import PrivacySettings
from fed.privacy import accountant, moved
from fed.seeding import unseed_noise
from server.ledgers import Ledger, exhausted


class _Accounted(Strategy):
    """Flower's wrapper around a plain mean, with Flower's accountant; it is its own ledger.

    A round in which not every client answered gives no aggregate and costs nothing.
    """

    def __init__(self, strategy: Any, settings: PrivacySettings, sampled: int, num_clients: int) -> None:
        # The noise is computed for this number of clients, so Flower waits until they are online.
        strategy.min_train_nodes = strategy.min_available_nodes = sampled
        super().__init__(strategy, settings.noise_multiplier, settings.clipping_norm, sampled)  # type: ignore[call-arg]
        # As an argument of `__init__` it would be refused for a mean that FedAvg's own method does not compute.
        self._books = accountant(settings.delta, num_clients)
        self.accountant: PrivacyAccountant | None = self._books
        self._settings, self._released = settings, False
        self.privacy_ledger: Ledger = self
        self._release = GaussianPrivacyEvent(settings.noise_multiplier, sampled, num_clients)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the noisy mean and add its cost to the account."""
        if not self._settings.seeded_noise:
            unseed_noise()
        arrays, metrics = super().aggregate_train(server_round, replies)  # type: ignore[safe-super]
        self._released = arrays is not None
        return arrays, metrics

    def spent(self) -> dict[str, float]:
        """Return the cost of the aggregates that were released."""
        spent = self._books.get_privacy_spent()
        return {"epsilon": spent.epsilon, "delta": spent.delta, "releases": spent.num_releases}

    def is_exhausted(self) -> bool:
        """Return whether one more aggregate would exceed `max_epsilon`."""
        limit = self._settings.max_epsilon
        return limit is not None and self._books.would_exceed(self._release, limit)

    def remarks(self) -> list[str]:
        """Return the remarks on a missing aggregate and on the end of the run."""
        nothing = "no aggregate, because not every client answered: the model is unchanged and no epsilon is spent"
        return [*([] if self._released else [nothing]), *exhausted(self, self._settings)]

    def state_dict(self) -> dict[str, Any]:
        """Return the accountant's state; nothing else lasts from round to round."""
        return {"accountant": self._books.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        With fresh noise, the interrupted round may have been released and will be released again: it is counted.
        """
        self._books.load_state_dict(dict(state["accountant"]))
        if not self._settings.seeded_noise:
            self._books.compose(self._release)


class ClippedByServer(_Accounted, DifferentialPrivacyServerSideFixedClipping):
    """A private mean of updates that the server receives as they are and clips."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the noisy mean; a client may have left its weights as they were."""
        replies = list(replies)
        for reply in replies:
            if not reply.has_error():
                for key, record in list(reply.content.array_records.items()):
                    reply.content[key] = moved(self.current_arrays, record)
        return super().aggregate_train(server_round, replies)


class ClippedByClients(_Accounted, DifferentialPrivacyClientSideFixedClipping):
    """A private mean of updates that clients clip themselves with Flower's `fixedclipping_mod`; it trusts them to."""
