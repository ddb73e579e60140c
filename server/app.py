"""The `ServerApp`: runs a strategy over the grid it is given."""

import math
from collections.abc import Iterator
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Bulyan, Strategy

from server.evaluate import ServerEvaluation


def server_app(
    strategy: Strategy, initial_arrays: ArrayRecord, evaluation: ServerEvaluation, *, num_rounds: int
) -> ServerApp:
    """An app whose run leaves the final global weights in its context, under "arrays"."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        result = strategy.start(
            grid,
            initial_arrays,
            num_rounds,
            timeout=math.inf,
            train_config=evaluation.train_config,
            evaluate_config=ConfigRecord(),
            evaluate_fn=evaluation,
        )
        # A strategy that trained nobody has no arrays of its own.
        context.state["arrays"] = result.arrays if len(result.arrays) else initial_arrays

    return app


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


def asks(strategy: Strategy, key: str) -> bool:
    """Whether the strategy or one it wraps has this attribute and it is not 0."""
    return any(getattr(layer, key, False) for layer in layers(strategy))


def layers(strategy: Strategy) -> Iterator[Any]:
    """The strategy and those it wraps, outermost first."""
    layer: Any = strategy
    while layer is not None:
        yield layer
        layer = getattr(layer, "strategy", None)


def _check_byzantine(layer: object, num_clients: int) -> None:
    """Against f malicious clients Krum needs 2f + 3 (arXiv 1703.02757), Bulyan 4f + 3 (arXiv 1802.07927)."""
    sampled = max(int(num_clients * getattr(layer, "fraction_train", 1.0)), getattr(layer, "min_train_nodes", 0))
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
