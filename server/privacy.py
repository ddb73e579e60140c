"""`privacy=`: a strategy whose rounds are differentially private, and the ledger of what they have cost."""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any, Protocol

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp import GaussianPrivacyEvent, PrivacyAccountant
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
    QFedAvg,
    Strategy,
)

from fed.config.groups import PrivacySettings
from fed.privacy import accountant, epsilon, moved
from fed.seeding import unseed_noise
from server.strategies import FeDPO, StreamingFedAvg
from server.traits import asks, layers, train_size


class Ledger(Protocol):
    """What a federation has cost of its clients' privacy; its state outlasts the process."""

    def spent(self) -> dict[str, float]:
        """`epsilon`, `delta`, `releases` and what else is known, for the log."""

    def is_exhausted(self) -> bool:
        """Whether one more round would exceed `max_epsilon`."""

    def remarks(self) -> list[str]:
        """What is to be told of the last round."""

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""


def protected(strategy: Strategy, settings: PrivacySettings, num_clients: int) -> Strategy:
    """The strategy as `privacy=` makes it, with a ledger; with `privacy=none` the strategy as it is.

    Clients must have the mods of `clients.privacy`.

    Raises:
        ValueError: If the strategy reads what must stay with the clients, or one round exceeds `max_epsilon`.
    """
    if settings.kind == "none":
        return strategy
    _check_reads(strategy, settings)
    _check_limit(settings)
    if settings.kind == "local_dp":
        ClientLedger(settings, num_clients).watch(strategy)
        return strategy
    _check_mean(strategy)
    central = {"server": ClippedByServer, "client": ClippedByClients}[settings.clipping]
    return central(strategy, settings, train_size(strategy, num_clients), num_clients)


def ledger_of(strategy: Strategy) -> Ledger | None:
    """What `protected` gave it."""
    return getattr(strategy, "privacy_ledger", None)


class ClientLedger:
    """Local privacy: how often each client was asked, and so may have sent its noisy update.

    A client that failed counts too: the server cannot know whether an answer that it did not get has left the client.
    """

    def __init__(self, settings: PrivacySettings, num_clients: int) -> None:
        self._settings, self._num_clients = settings, num_clients
        self._asked: Counter[int] = Counter()

    def watch(self, strategy: Strategy) -> None:
        """Count those that the strategy asks to train, and be its ledger."""
        configure = strategy.configure_train

        @functools.wraps(configure)
        def counted(*arguments: Any, **named: Any) -> list[Message]:
            messages = list(configure(*arguments, **named))
            self._asked.update(message.metadata.dst_node_id for message in messages)
            return messages

        # On the instance: a strategy around it would hide its class, by which runs know what it can do.
        vars(strategy).update(configure_train=counted, privacy_ledger=self)

    def spent(self) -> dict[str, float]:
        """`epsilon` is that of the client that was asked most often, `epsilon_mean` the mean over all."""
        every = [self._epsilon(count) for count in self._asked.values()]
        every += [0.0] * (self._num_clients - len(every))
        most = max(self._asked.values(), default=0)
        return {
            "epsilon": self._epsilon(most),
            "epsilon_mean": fmean(every),
            "delta": self._settings.delta,
            "releases": most,
        }

    def is_exhausted(self) -> bool:
        """Whether any client would exceed it."""
        limit = self._settings.max_epsilon
        return limit is not None and self._epsilon(max(self._asked.values(), default=0) + 1) > limit

    def remarks(self) -> list[str]:
        """That it is exhausted."""
        return _exhausted(self, self._settings)

    def state_dict(self) -> dict[str, Any]:
        """Rounds by node."""
        return {"asked": dict(self._asked)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        With noise of its own every time, the round that was cut off may have left the clients, and will once more.
        """
        self._asked = Counter(state["asked"])
        if not self._settings.seeded_noise:
            self._asked.update(range(self._num_clients))

    def _epsilon(self, releases: int) -> float:
        return epsilon(self._settings.noise_multiplier, releases, self._settings.delta)


class _Accounted(Strategy):
    """Flower's wrapper with its accountant, around any plain mean; its own ledger.

    A round in which not every client answered gives no aggregate, and costs nothing.
    """

    def __init__(self, strategy: Any, settings: PrivacySettings, sampled: int, num_clients: int) -> None:
        # The noise is made for so many clients: Flower waits until they are online.
        strategy.min_train_nodes = strategy.min_available_nodes = sampled
        super().__init__(strategy, settings.noise_multiplier, settings.clipping_norm, sampled)  # type: ignore[call-arg]
        # Given to `__init__`, it would be refused for a mean that is not computed by FedAvg's own method.
        self._books = accountant(settings.delta, num_clients)
        self.accountant: PrivacyAccountant | None = self._books
        self._settings, self._released = settings, False
        self.privacy_ledger: Ledger = self
        self._release = GaussianPrivacyEvent(settings.noise_multiplier, sampled, num_clients)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The noisy mean, and its cost composed with that of those before."""
        if not self._settings.seeded_noise:
            unseed_noise()
        arrays, metrics = super().aggregate_train(server_round, replies)  # type: ignore[safe-super]
        self._released = arrays is not None
        return arrays, metrics

    def spent(self) -> dict[str, float]:
        """Of the aggregates that were released."""
        spent = self._books.get_privacy_spent()
        return {"epsilon": spent.epsilon, "delta": spent.delta, "releases": spent.num_releases}

    def is_exhausted(self) -> bool:
        """Whether one more aggregate would exceed it."""
        limit = self._settings.max_epsilon
        return limit is not None and self._books.would_exceed(self._release, limit)

    def remarks(self) -> list[str]:
        """That there was no aggregate, that it is exhausted."""
        nothing = "no aggregate, for not every client answered: the model stays as it was and no epsilon is spent"
        return [*([] if self._released else [nothing]), *_exhausted(self, self._settings)]

    def state_dict(self) -> dict[str, Any]:
        """The accountant's; nothing else lasts from round to round."""
        return {"accountant": self._books.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave.

        With noise of its own every time, the round that was cut off may have been seen, and will be once more.
        """
        self._books.load_state_dict(dict(state["accountant"]))
        if not self._settings.seeded_noise:
            self._books.compose(self._release)


class ClippedByServer(_Accounted, DifferentialPrivacyServerSideFixedClipping):
    """The server gets updates as they are and clips them."""

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As that of `_Accounted`; a client may have left its weights as they were."""
        replies = list(replies)
        for reply in replies:
            if not reply.has_error():
                for key, record in list(reply.content.array_records.items()):
                    reply.content[key] = moved(self.current_arrays, record)
        return super().aggregate_train(server_round, replies)


class ClippedByClients(_Accounted, DifferentialPrivacyClientSideFixedClipping):
    """Clients clip their own updates, with Flower's `fixedclipping_mod`, and are trusted to."""


def _exhausted(ledger: Ledger, settings: PrivacySettings) -> list[str]:
    text = f"one more round would exceed privacy.max_epsilon={settings.max_epsilon}: the run ends here"
    return [text] if ledger.is_exhausted() else []


def _check_reads(strategy: Strategy, settings: PrivacySettings) -> None:
    """Whether the strategy can do with weights alone."""
    who = f"privacy={settings.kind}"
    if len(list(layers(strategy))) > 1:
        raise ValueError(f"{who} and {type(strategy).__name__} around another strategy; choose one of the two")
    if asks(strategy, "fraction_evaluate"):
        raise ValueError(f"{who}: strategy.fraction_evaluate sends what clients measure without noise; make it 0")
    if isinstance(strategy, FeDPO) and strategy.weighting != "samples" and strategy.temp != 0:
        raise ValueError(
            f"{who}: temp={strategy.temp:g} weighs clients by accuracies, which stay with the clients; use temp=0 "
            "(FeDPO with equal weights) or strategy=fedavg"
        )
    if isinstance(strategy, QFedAvg):
        raise ValueError(f"{who}: QFedAvg weighs clients by losses, which stay with the clients; use strategy=fedavg")
    key = getattr(strategy, "weighted_by_key", "num-examples")
    if key != "num-examples":
        raise ValueError(
            f"{who}: strategy.weighted_by_key={key} stays with the clients; leave it at num-examples, which is 1 for "
            "all"
        )


def _check_limit(settings: PrivacySettings) -> None:
    once = epsilon(settings.noise_multiplier, 1, settings.delta)
    if settings.max_epsilon is not None and once > settings.max_epsilon:
        raise ValueError(
            f"privacy.max_epsilon={settings.max_epsilon:g} is less than the {once:.3g} of a single round; raise it, or "
            f"privacy.noise_multiplier={settings.noise_multiplier:g}"
        )


def _check_mean(strategy: Strategy) -> None:
    """Noise for a mean of equal weights hides one client in no other aggregate."""
    kind = type(strategy)
    flowers = isinstance(strategy, FedAvg) and kind.aggregate_train is FedAvg.aggregate_train
    ours = (
        isinstance(strategy, StreamingFedAvg)
        and kind.aggregate_train is StreamingFedAvg.aggregate_train
        and type(strategy).log_weight in (StreamingFedAvg.log_weight, FeDPO.log_weight)
    )
    if not (flowers or ours):
        raise ValueError(
            f"privacy=central_dp needs the plain mean, which {kind.__name__} does not take; use strategy=fedavg, "
            "fedprox or temp=0, or privacy=local_dp, which any strategy takes"
        )
