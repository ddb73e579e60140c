"""Questions about a strategy, Flower's or the user's: what it is, needs and can do."""

from collections.abc import Iterator, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    QFedAvg,
    Strategy,
)

from fed.checkpoints.contexts import Contexts
from fed.grids.local import LocalGrid
from fed.seeding import seeded_globals
from server.strategies import StreamingFedAvg

# Flower's strategies that treat every number by itself: parts of arrays give the parts of the result.
ELEMENTWISE = (FedAdagrad, FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, FedTrimmedAvg, FedYogi)


def check_strategy(strategy: Strategy, num_clients: int) -> None:
    """Refuse a strategy that needs more clients than there are.

    Flower's `sample_nodes` would wait for them for ever.

    Raises:
        ValueError: If the strategy, or one that it wraps, needs more.
    """
    for layer in layers(strategy):
        for key in ("min_train_nodes", "min_evaluate_nodes", "min_available_nodes", "num_sampled_clients"):
            needed = getattr(layer, key, 0)
            if needed > num_clients:
                raise ValueError(
                    f"{type(layer).__name__} waits for {key}={needed} clients but "
                    f"client_num_in_total={num_clients}; lower "
                    f"strategy.{key} or raise client_num_in_total"
                )
        _check_byzantine(layer, num_clients)


def _check_byzantine(layer: Any, num_clients: int) -> None:
    """Refuse too few clients: against f malicious ones Krum needs 2f + 3, Bulyan 4f + 3 a round.

    See arXiv 1703.02757 for Krum and arXiv 1802.07927 for Bulyan.
    """
    per_round = train_size(layer, num_clients)
    malicious = getattr(layer, "num_malicious_nodes", None)
    if malicious is not None:
        needed = (4 if isinstance(layer, Bulyan) else 2) * malicious + 3
        if per_round < needed:
            raise ValueError(
                f"{type(layer).__name__} with num_malicious_nodes={malicious} needs {needed} clients a round, there "
                f"are {per_round}; lower strategy.num_malicious_nodes or raise client_num_in_total"
            )
    selected = getattr(layer, "num_nodes_to_select", 0)
    if selected > per_round:
        raise ValueError(
            f"{type(layer).__name__} is to select {selected} of {per_round} clients a round; lower "
            "strategy.num_nodes_to_select"
        )


def sampled(num_clients: int, per_round: int, server_round: int, seed: int) -> list[int]:
    """Return the clients that Flower's FedAvg, and so most strategies, would train in a round."""
    strategy = FedAvg(fraction_train=per_round / num_clients, min_train_nodes=per_round, min_available_nodes=1)
    grid = LocalGrid(ClientApp(), Contexts(range(num_clients)))
    with seeded_globals(seed, "flower", server_round - 1):
        messages = list(strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid))
    return [message.metadata.dst_node_id for message in messages]


def train_size(strategy: Strategy, num_clients: int) -> int:
    """Return how many clients Flower's FedAvg, and so most strategies, would train in a round."""
    return max(int(num_clients * getattr(strategy, "fraction_train", 1.0)), getattr(strategy, "min_train_nodes", 0))


def asks(strategy: Strategy, key: str) -> bool:
    """Return whether the strategy, or one that it wraps, has the attribute `key` and it is not 0."""
    return any(getattr(layer, key, False) for layer in layers(strategy))


def constant_decay(strategy: Strategy) -> float:
    """Return the factor lambda by which clients decay in every round; 1 if they do not, or if it changes."""
    return next((layer.decay_rate for layer in layers(strategy) if getattr(layer, "decay", None) == "constant"), 1.0)


def layers(strategy: Strategy) -> Iterator[Any]:
    """Yield the strategy and those that it wraps, outermost first."""
    layer: Any = strategy
    while layer is not None:
        yield layer
        layer = getattr(layer, "strategy", None)


def takes_parts(strategy: Strategy) -> bool:
    """Return whether the strategy can run on parts of the arrays.

    It can if it is one of `ELEMENTWISE`, or if its class sets `elementwise`. A class does that for its own way to
    aggregate, not for that of a subclass.
    """
    return all(type(layer) in ELEMENTWISE or _says_elementwise(layer) for layer in layers(strategy))


def _says_elementwise(layer: object) -> bool:
    names = [vars(cls).keys() for cls in type(layer).__mro__]
    first = {
        key: next((i for i, own in enumerate(names) if key in own), -1) for key in ("elementwise", "aggregate_train")
    }
    return bool(getattr(layer, "elementwise", False)) and first["elementwise"] <= first["aggregate_train"]


def raises_loss(strategy: Strategy) -> bool:
    """Return whether the strategy, or one that it wraps, raises clients' losses to a power."""
    return any(isinstance(layer, QFedAvg) for layer in layers(strategy))


def streams(strategy: Strategy) -> bool:
    """Return whether the strategy reads each reply once and in order."""
    return bool(getattr(strategy, "streams", False))


def joins_groups(strategy: Strategy) -> bool:
    """Return whether the strategy can combine the means of several groups of clients."""
    return (
        isinstance(strategy, StreamingFedAvg)
        and streams(strategy)
        and type(strategy).aggregate_train is StreamingFedAvg.aggregate_train
    )


def client_weights(strategy: Strategy) -> Mapping[int, float]:
    """Return each node's share of the last aggregate; empty if neither the strategy nor one that it wraps tells it."""
    return next((layer.client_weights for layer in layers(strategy) if hasattr(layer, "client_weights")), {})
