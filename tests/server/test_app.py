"""The server's app: a resumed run counts the rounds of the whole run."""

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAvg,
    Strategy,
)

from fed.grids.local import LocalGrid
from fed.model.arrays import to_record, to_tensors
from server.app import server_app
from server.state import StrategyState


@pytest.fixture(autouse=True)
def grid() -> LocalGrid:
    """Make a grid of two clients; `Message()` needs the identity that a grid sets."""
    contexts = [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in range(2)]
    return LocalGrid(ClientApp(), contexts)


class Tells(FedAvg):
    """A strategy that remembers the rounds it is told, by itself or within a wrapper."""

    def __init__(self) -> None:
        super().__init__(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
        self.told: list[tuple[str, int]] = []

    def configure_train(self, server_round: int, *arguments: Any) -> Iterable[Message]:
        self.told.append(("configure_train", server_round))
        return super().configure_train(server_round, *arguments)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.told.append(("aggregate_train", server_round))
        return super().aggregate_train(server_round, replies)

    def configure_evaluate(self, server_round: int, *arguments: Any) -> Iterable[Message]:
        self.told.append(("configure_evaluate", server_round))
        return super().configure_evaluate(server_round, *arguments)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> Any:
        self.told.append(("aggregate_evaluate", server_round))
        return super().aggregate_evaluate(server_round, replies)


METHODS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


def answering() -> ClientApp:
    """Make an app that adds one to the weights it receives and remembers the rounds in which it was asked."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        sent = to_tensors(message.content.array_records["arrays"])
        rounds.append(int(message.content.config_records["config"]["server-round"]))  # type: ignore[arg-type]
        arrays = to_record({name: tensor + 1 for name, tensor in sent.items()})
        return Message(RecordDict({"arrays": arrays, "m": MetricRecord({"num-examples": 1})}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"m": MetricRecord({"num-examples": 1})}), reply_to=message)

    rounds: list[int] = []
    app.rounds = rounds  # type: ignore[attr-defined]
    return app


def run(strategy: Strategy, done: int, num_rounds: int = 4) -> tuple[list[int], list[tuple[int, float]], float]:
    """Return the rounds that clients were told, the evaluations and the final number."""
    app = answering()
    grid = LocalGrid(app, [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in range(2)])
    evaluated: list[tuple[int, float]] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        evaluated.append((server_round, float(to_tensors(arrays)["w"][0])))
        return MetricRecord({"accuracy": 0.5})

    context = Context(0, -1, {}, RecordDict(), {})
    server = server_app(
        to_record({"w": torch.tensor([float(done)])}),
        evaluate,
        done,
        strategy=strategy,
        train_config=ConfigRecord(),
        num_rounds=num_rounds,
    )
    server(grid, context)
    final = float(to_tensors(context.state.array_records["arrays"])["w"][0])
    return app.rounds, evaluated, final  # type: ignore[attr-defined]


@pytest.mark.parametrize("wraps", [False, True])
@pytest.mark.parametrize("done", [0, 2, 3])
def test_a_strategy_is_told_the_rounds_of_the_whole_run(done: int, wraps: bool) -> None:
    """The run begins with the number of rounds done, and each round adds one to it."""
    inner = Tells()
    strategy = DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.0, 2, 1e6) if wraps else inner
    rounds, evaluated, final = run(strategy, done)
    expected = list(range(done + 1, 5))
    assert inner.told == [(method, server_round) for server_round in expected for method in METHODS]
    assert rounds == [server_round for server_round in expected for _ in range(2)]
    assert evaluated == [(n, float(n)) for n in ([0, *expected] if done == 0 else expected)]
    assert final == 4


def test_a_run_whose_rounds_are_all_done_asks_nobody_and_gives_back_what_it_has() -> None:
    strategy = Tells()
    assert run(strategy, 4) == ([], [], 4.0) and strategy.told == []


def test_a_strategy_that_goes_on_has_nothing_more_to_keep() -> None:
    strategy = Tells()
    run(strategy, 2)
    state = StrategyState(strategy)
    assert state.left_out() == [] and not set(METHODS) & state.state_dict()[0].keys()
