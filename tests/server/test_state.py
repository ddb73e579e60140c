"""The state of a strategy goes through a file, and the next round is the same as without it."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Strategy,
)

from fed.checkpoints import serialize
from fed.distributed.ranks import Ranks
from fed.grids.local import LocalGrid
from fed.model.arrays import to_record
from server.state import StrategyState
from server.strategies import FeDPO, StreamingFedAvg


@pytest.fixture(autouse=True)
def grid() -> LocalGrid:
    """Make a grid of two clients; `Message()` needs the identity that a grid sets."""
    contexts = [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in range(2)]
    return LocalGrid(ClientApp(), contexts)


ONE = {"min_train_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0}


def private() -> Strategy:
    inner = FedAvgM(**ONE, server_momentum=0.5)  # type: ignore[arg-type]
    return DifferentialPrivacyServerSideAdaptiveClipping(inner, 0.1, 2, initial_clipping_norm=1.0)


MAKE: dict[str, Callable[[], Strategy]] = {
    "FeDPO": lambda: FeDPO(temp=2.0, **ONE),
    "FedAdam": lambda: FedAdam(**ONE, eta=0.1),  # type: ignore[arg-type]
    "FedYogi": lambda: FedYogi(**ONE, eta=0.1),  # type: ignore[arg-type]
    "FedAdagrad": lambda: FedAdagrad(**ONE, eta=0.1),  # type: ignore[arg-type]
    "FedAvgM": lambda: FedAvgM(**ONE, server_momentum=0.5),  # type: ignore[arg-type]
    "private": private,
}


def replies(values: Iterable[torch.Tensor]) -> list[Message]:
    messages = []
    for node, value in enumerate(values):
        metrics = MetricRecord({"num-examples": 3 + node, "accuracy": 0.5 + node / 7})
        content = RecordDict({"arrays": to_record({"w": value, "b": value[:1] / 3}), "metrics": metrics})
        messages.append(Message(content, reply_to=Message(RecordDict(), node, "train")))
    return messages


def play(strategy: Strategy, grid: LocalGrid, arrays: ArrayRecord, server_round: int) -> ArrayRecord:
    """Play one round whose replies and noise depend on its number only."""
    random.seed(server_round)
    np.random.seed(server_round)
    draws = torch.Generator().manual_seed(server_round)
    list(strategy.configure_train(server_round, arrays, ConfigRecord(), grid))
    sent = replies(torch.randn(3, generator=draws) for _ in range(2))
    aggregated, _ = strategy.aggregate_train(server_round, sent)
    assert aggregated is not None
    return aggregated


def start() -> ArrayRecord:
    return to_record({"w": torch.tensor([0.5, -1.0, 2.0]), "b": torch.tensor([0.1])})


def bits(record: ArrayRecord) -> dict[str, tuple[str, bytes]]:
    return {name: (str(array.numpy().dtype), array.numpy().tobytes()) for name, array in record.items()}


def through_a_file(tree: Any, folder: Path) -> Any:
    serialize.save(tree, folder / "tree")
    return serialize.load(folder / "tree")


# The third round


@pytest.mark.parametrize("name", MAKE)
def test_the_third_round_after_a_file_is_the_third_round_to_the_bit(name: str, grid: LocalGrid, tmp_path: Path) -> None:
    strategy, arrays = MAKE[name](), start()
    for server_round in (1, 2):
        arrays = play(strategy, grid, arrays, server_round)
    kept = through_a_file({"arrays": arrays, "state": StrategyState(strategy).state_dict()}, tmp_path)
    expected = bits(play(strategy, grid, arrays, 3))

    resumed = MAKE[name]()
    StrategyState(resumed).load_state_dict(kept["state"])
    assert bits(play(resumed, grid, kept["arrays"], 3)) == expected
    if name != "FeDPO":  # which remembers nothing that the next round depends on
        forgetful = play(MAKE[name](), grid, kept["arrays"], 3)
        assert bits(forgetful) != expected
    assert StrategyState(resumed).left_out() == []


def momentum(strategy: Strategy, grid: LocalGrid, arrays: ArrayRecord, value: float) -> ArrayRecord:
    list(strategy.configure_train(1, arrays, ConfigRecord(), grid))
    aggregated, _ = strategy.aggregate_train(1, replies([torch.full((1,), value)] * 2))
    assert aggregated is not None
    return aggregated


def test_momentum_by_hand(grid: LocalGrid, tmp_path: Path) -> None:
    """Momentum 1/2 and means 1, 2, 3 from 0: m = -1, then -1/2 - 1 = -3/2, then -3/4 + (2.5 - 3) = -5/4.

    So the weights are 1, 2.5 and 3.75.
    """
    first = FedAvgM(**ONE, server_momentum=0.5)  # type: ignore[arg-type]
    arrays = to_record({"w": torch.zeros(1), "b": torch.zeros(1)})
    for value, expected in ((1.0, 1.0), (2.0, 2.5)):
        arrays = momentum(first, grid, arrays, value)
        assert arrays["w"].numpy().tolist() == [expected]
    second = FedAvgM(**ONE, server_momentum=0.5)  # type: ignore[arg-type]
    state = through_a_file(StrategyState(first).state_dict(), tmp_path)
    StrategyState(second).load_state_dict(state)
    assert momentum(second, grid, arrays, 3.0)["w"].numpy().tolist() == [3.75]


def test_fedpo_tells_of_the_weights_of_the_round_before(grid: LocalGrid, tmp_path: Path) -> None:
    """Clients of accuracies 1/2 and 9/14 weigh a half each at temp 0."""
    first, second = FeDPO(temp=0.0, **ONE), FeDPO(temp=0.0, **ONE)
    play(first, grid, start(), 1)
    StrategyState(second).load_state_dict(through_a_file(StrategyState(first).state_dict(), tmp_path))
    assert second.client_weights == {0: 0.5, 1: 0.5}


def test_both_layers_of_a_wrapper_are_kept_and_stay_apart(grid: LocalGrid, tmp_path: Path) -> None:
    first, second = private(), private()
    play(first, grid, start(), 1)
    state = through_a_file(StrategyState(first).state_dict(), tmp_path)
    assert len(state) == 2 and "strategy" not in state[0]
    inner = second.strategy  # type: ignore[attr-defined]
    StrategyState(second).load_state_dict(state)
    assert second.strategy is inner  # type: ignore[attr-defined]
    assert second.clipping_norm == first.clipping_norm != 1.0  # type: ignore[attr-defined]
    assert second.clipped_count_stddev == first.clipped_count_stddev  # type: ignore[attr-defined]
    momentum_vector = first.strategy.momentum_vector  # type: ignore[attr-defined]
    assert all(map(np.array_equal, inner.momentum_vector, momentum_vector)) and len(momentum_vector) == 2


def test_a_state_of_other_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        StrategyState(private()).load_state_dict(StrategyState(FedAvg()).state_dict())


# What a strategy says itself, and what no file can hold


class Says(FedAvg):
    """A strategy that says what to keep: `best`; no file could hold `lock`."""

    def __init__(self) -> None:
        super().__init__()
        self.best, self.lock, self.cache = 0, object(), [1]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"] + 100


def test_a_strategy_that_says_what_to_keep_is_asked(tmp_path: Path) -> None:
    first, second = Says(), Says()
    first.best, first.cache = 5, [1, 2]
    state = through_a_file(StrategyState(first).state_dict(), tmp_path)
    assert state == [{"best": 5}]
    StrategyState(second).load_state_dict(state)
    assert (second.best, second.cache) == (105, [1])
    assert StrategyState(first).left_out() == []


def test_within_a_wrapper_it_is_asked_too(tmp_path: Path) -> None:
    def wrapped() -> DifferentialPrivacyServerSideAdaptiveClipping:
        return DifferentialPrivacyServerSideAdaptiveClipping(Says(), 0.0, 2)

    first, second = wrapped(), wrapped()
    first.clipping_norm, first.strategy.best = 3.0, 7
    StrategyState(second).load_state_dict(through_a_file(StrategyState(first).state_dict(), tmp_path))
    assert (second.clipping_norm, second.strategy.best) == (3.0, 107)


class Holds(StreamingFedAvg):
    """A strategy with attributes of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.generator = np.random.default_rng(0)
        self.module = torch.nn.Linear(1, 1)
        self.mixed = {"ok": 1, "no": object()}
        self.function = lambda: 0
        self.groups = Ranks(1, 2)


def test_what_no_file_can_hold_is_named_and_left_as_it_is_made(tmp_path: Path) -> None:
    first, second = Holds(), Holds()
    first.count = 3
    first.generator.random()
    named = StrategyState(first).left_out()
    assert "Holds.mixed" in named
    assert not {f"Holds.{name}" for name in ("count", "generator", "function", "groups", "train_metrics_aggr_fn")} & {
        *named
    }
    module, groups = second.module, second.groups
    StrategyState(second).load_state_dict(through_a_file(StrategyState(first).state_dict(), tmp_path))
    assert second.count == 3 and second.module is module and second.groups is groups
    assert second.generator.random() == np.random.default_rng(0).random(2)[1]


def test_a_model_that_a_strategy_holds_is_named() -> None:
    """Otherwise a resume would lose its weights without a word."""
    assert "Holds.module" in StrategyState(Holds()).left_out()


def test_of_a_wrapper_both_layers_are_named() -> None:
    wrapper = private()
    wrapper.extra = object()  # type: ignore[attr-defined]
    wrapper.strategy.other = frozenset()  # type: ignore[attr-defined]
    assert StrategyState(wrapper).left_out() == [
        "DifferentialPrivacyServerSideAdaptiveClipping.extra",
        "FedAvgM.other",
    ]
