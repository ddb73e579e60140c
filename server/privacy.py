"""`privacy=`: a strategy whose rounds are differentially private."""

from flwr.serverapp.strategy import FedAvg, QFedAvg, Strategy

from fed.config.groups import PrivacySettings
from fed.privacy import epsilon
from server.ledgers import ClientLedger, Ledger
from server.private_means import ClippedByClients, ClippedByServer
from server.strategies import FeDPO, StreamingFedAvg
from server.traits import asks, layers, train_size


def protected(strategy: Strategy, settings: PrivacySettings, num_clients: int) -> Strategy:
    """Make the strategy private as `settings` ask and give it a ledger; return it unchanged with `privacy=none`.

    The clients must have the mods of `clients.privacy`.

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
    """Return the ledger that `protected` gave to the strategy."""
    return getattr(strategy, "privacy_ledger", None)


def _check_reads(strategy: Strategy, settings: PrivacySettings) -> None:
    """Check that the strategy needs nothing of the clients but their weights.

    Raises:
        ValueError: If it needs more.
    """
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
    """Check for a plain mean: noise computed for equal weights hides one client in no other aggregate.

    Raises:
        ValueError: If the strategy takes another mean.
    """
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
