"""The `ServerApp`: runs a strategy over the grid that it is given."""

import math
from collections.abc import Callable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from fed.grids.leader import Evaluate


def server_app(
    initial_arrays: ArrayRecord,
    evaluate: Evaluate,
    done: int,
    *,
    strategy: Strategy,
    train_config: ConfigRecord,
    num_rounds: int,
    is_over: Callable[[], bool] = lambda: False,
) -> ServerApp:
    """Make an app whose run leaves the final global weights in its context, under "arrays".

    Args:
        initial_arrays: The weights after `done` rounds.
        evaluate: Flower's `evaluate_fn`.
        done: The rounds that an earlier process ran. If there are any, `evaluate` is not called for `initial_arrays`.
        strategy: One of Flower's or the user's.
        train_config: The record that clients receive; the caller may change it between rounds.
        num_rounds: The largest number of rounds, `done` included.
        is_over: Called after each round; returns True to end the run.
    """
    app = ServerApp()
    if done:
        _count_from(strategy, done)
    rounds, evaluate_fn = num_rounds - done, _evaluate_fn(evaluate, done, is_over)

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            records = {"train_config": train_config, "evaluate_config": ConfigRecord()}
            result = strategy.start(grid, initial_arrays, rounds, timeout=math.inf, evaluate_fn=evaluate_fn, **records)
        except _Over as over:
            context.state["arrays"] = over.arrays
            return
        # A strategy that trained nobody has no arrays of its own.
        context.state["arrays"] = result.arrays if len(result.arrays) else initial_arrays

    return app


class _Over(Exception):
    """The end of Flower's loop over the rounds, with the global weights."""

    def __init__(self, arrays: ArrayRecord) -> None:
        self.arrays = arrays


def _evaluate_fn(evaluate: Evaluate, done: int, is_over: Callable[[], bool]) -> Evaluate:
    """Wrap `evaluate` so that it receives the rounds of the whole run, and ends the run if it is over."""

    def evaluate_fn(number: int, arrays: ArrayRecord) -> MetricRecord | None:
        found = evaluate(number + done, arrays) if number or not done else None
        if (number or done) and is_over():
            raise _Over(arrays)
        return found

    return evaluate_fn


def _count_from(strategy: Strategy, done: int) -> None:
    """Make the strategy's methods receive the rounds of the whole run: its `start` counts from 1."""
    for name in ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate"):
        setattr(strategy, name, _later(getattr(strategy, name), done))


def _later(method: Callable[..., Any], done: int) -> Callable[..., Any]:
    def shifted(server_round: int, *arguments: Any, **named: Any) -> Any:
        return method(server_round + done, *arguments, **named)

    return shifted
