"""What a strategy is and needs: questions about any Flower strategy, answered before a run begins."""

from collections.abc import Iterator
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
    Strategy,
)

from fed.checkpoints.contexts import Contexts
from fed.grids.local import LocalGrid
from fed.seeding import seeded_globals
from server.strategies import StreamingFedAvg


def check_strategy(strategy: Strategy, num_clients: int) -> None:
    """Refuse a strategy that would wait for ever.

    Raises:
        ValueError: If the strategy, or one it wraps, wants more clients than exist: `sample_nodes` would never return.
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


def sampled(num_clients: int, per_round: int, server_round: int, seed: int) -> list[int]:
    """The clients that Flower's FedAvg, and so most strategies, would train in a round."""
    strategy = FedAvg(fraction_train=per_round / num_clients, min_train_nodes=per_round, min_available_nodes=1)
    grid = LocalGrid(ClientApp(), Contexts(range(num_clients)))
    with seeded_globals(seed, "flower", server_round - 1):
        messages = list(strategy.configure_train(server_round, ArrayRecord(), ConfigRecord(), grid))
    return [message.metadata.dst_node_id for message in messages]


def train_size(strategy: Strategy, num_clients: int) -> int:
    """How many clients Flower's FedAvg, and so most strategies, would train in a round."""
    return max(int(num_clients * getattr(strategy, "fraction_train", 1.0)), getattr(strategy, "min_train_nodes", 0))


def asks(strategy: Strategy, key: str) -> bool:
    """Whether the strategy or one it wraps has this attribute and it is not 0."""
    return any(getattr(layer, key, False) for layer in layers(strategy))


def layers(strategy: Strategy) -> Iterator[Any]:
    """The strategy and those it wraps, outermost first."""
    layer: Any = strategy
    while layer is not None:
        yield layer
        layer = getattr(layer, "strategy", None)


def _check_byzantine(layer: Any, num_clients: int) -> None:
    """Against f malicious clients Krum needs 2f + 3 (arXiv 1703.02757), Bulyan 4f + 3 (arXiv 1802.07927)."""
    sampled = train_size(layer, num_clients)
    malicious = getattr(layer, "num_malicious_nodes", None)
    if malicious is not None:
        needed = (4 if isinstance(layer, Bulyan) else 2) * malicious + 3
        if sampled < needed:
            raise ValueError(
                f"{type(layer).__name__} with num_malicious_nodes={malicious} needs {needed} clients a round, there "
                f"are {sampled}; lower strategy.num_malicious_nodes or raise client_num_in_total"
            )
    selected = getattr(layer, "num_nodes_to_select", 0)
    if selected > sampled:
        raise ValueError(
            f"{type(layer).__name__} is to select {selected} of {sampled} clients a round; lower "
            "strategy.num_nodes_to_select"
        )


# Flower's strategies that treat every number by itself: parts of arrays give the parts of the result.
ELEMENTWISE = (FedAdagrad, FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, FedTrimmedAvg, FedYogi)


def takes_parts(strategy: Strategy) -> bool:
    """Whether the strategy can run on parts of the arrays: one of those above, or a class that says `elementwise`.

    A class says it for its own way to aggregate, not for one that a subclass brings.
    """
    return all(type(layer) in ELEMENTWISE or _says_elementwise(layer) for layer in layers(strategy))


def _says_elementwise(layer: object) -> bool:
    names = [vars(cls).keys() for cls in type(layer).__mro__]
    first = {
        key: next((i for i, own in enumerate(names) if key in own), -1) for key in ("elementwise", "aggregate_train")
    }
    return bool(getattr(layer, "elementwise", False)) and first["elementwise"] <= first["aggregate_train"]


def streams(strategy: Strategy) -> bool:
    """Whether the strategy reads each reply once and in order."""
    return bool(getattr(strategy, "streams", False))


def joins_groups(strategy: Strategy) -> bool:
    """Whether the strategy makes one mean of those of several groups of clients."""
    return isinstance(strategy, StreamingFedAvg) and type(strategy).aggregate_train is StreamingFedAvg.aggregate_train
