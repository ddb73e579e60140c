"""Private strategies by hand: the noise of the aggregate, the ledger, and what is refused."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian, FedProx, Krum

from clients.privacy import privacy_mods
from fed import privacy
from fed.checkpoints.serialize import is_packable
from fed.config.groups import PrivacySettings
from fed.grids.local import LocalGrid
from fed.model.arrays import to_tensors
from server.privacy import ledger_of, protected
from server.state import StrategyState
from server.strategies import FeDPO, StreamingFedAvg
from server.traits import train_size
from support.private_rounds import (
    ALL,
    CLIPPED,
    SENT,
    UPDATES,
    answered,
    asked,
    by_hand,
    sent_by_a_client,
    settings,
    trained_by_first,
)


@pytest.fixture
def grid() -> LocalGrid:
    return LocalGrid(ClientApp(), [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in range(3)])


@pytest.mark.parametrize("inner", [FedAvg(**ALL), FedProx(**ALL), StreamingFedAvg(**ALL), FeDPO(temp=0.0, **ALL)])
def test_the_aggregate_is_the_mean_of_clipped_updates_plus_noise_of_z_c_over_m(inner: Any, grid: LocalGrid) -> None:
    """The standard deviation is z C / m = 0.5 x 2 / 3; numpy's global generator draws array by array."""
    strategy = protected(inner, settings(), 3)
    replies = answered(asked(strategy, grid))
    np.random.seed(5)
    arrays, _ = strategy.aggregate_train(1, replies)
    rng = np.random.RandomState(5)
    for name, tensor in to_tensors(arrays).items():
        noise = torch.tensor(rng.normal(0, 0.5 * 2 / 3, tensor.shape), dtype=torch.float32)
        torch.testing.assert_close(tensor, SENT[name] + CLIPPED[name].mean(0) + noise, rtol=1e-6, atol=1e-6)


def test_the_noise_has_its_standard_deviation(grid: LocalGrid) -> None:
    """For n = 200,000 numbers the estimate's own relative error is 1/sqrt(2 n), 0.16 %."""
    zeros, step = {"a": torch.zeros(200_000)}, {"a": torch.full((200_000,), 1e-9)}
    strategy = protected(StreamingFedAvg(**ALL), settings(), 3)
    np.random.seed(0)
    arrays, _ = strategy.aggregate_train(1, answered(asked(strategy, grid, weights=zeros), step))
    assert float(to_tensors(arrays)["a"].std()) == pytest.approx(0.5 * 2 / 3, rel=0.01)
    local = settings(kind="local_dp")
    np.random.seed(0)
    (reply,) = sent_by_a_client(local, zeros, step)
    assert float(to_tensors(reply.content["arrays"])["a"].std()) == pytest.approx(0.5 * 2 * 2, rel=0.01)


def test_clipping_by_clients_adds_the_same_noise_at_the_server(grid: LocalGrid) -> None:
    strategy = protected(FedAvg(**ALL), settings(clipping="client"), 3)
    ledger = ledger_of(strategy)
    messages = asked(strategy, grid)
    assert messages[0].content["config"]["clipping_norm"] == 2.0
    clipped = {name: SENT[name] + 0.4 * UPDATES[0][name] for name in SENT}
    np.random.seed(5)
    arrays, _ = strategy.aggregate_train(1, answered(messages, clipped))
    noise = torch.tensor(np.random.RandomState(5).normal(0, 0.5 * 2 / 3, 2), dtype=torch.float32)
    torch.testing.assert_close(to_tensors(arrays)["a"], clipped["a"] + noise)
    assert ledger is not None and ledger.spent()["releases"] == 1


def test_a_round_that_lacks_a_client_gives_no_aggregate_and_costs_nothing(grid: LocalGrid) -> None:
    strategy = protected(StreamingFedAvg(**ALL), settings(), 3)
    ledger = ledger_of(strategy)
    assert ledger is not None
    messages = asked(strategy, grid)
    replies = [*answered(messages)[:2], Message(Error(0, "gone"), reply_to=messages[2])]
    assert strategy.aggregate_train(1, replies) == (None, None)
    assert ledger.spent() == {"epsilon": 0.0, "delta": 1e-5, "releases": 0}
    assert ["no epsilon is spent" in remark for remark in ledger.remarks()] == [True]
    strategy.aggregate_train(2, answered(asked(strategy, grid, 2)))
    assert ledger.spent()["epsilon"] == pytest.approx(by_hand(0.5, 1, 1e-5), rel=1e-9)
    assert ledger.remarks() == []


def test_a_client_is_charged_for_every_round_it_was_asked_in(grid: LocalGrid) -> None:
    """One of three clients trains per round: the largest count decides; the mean counts those never asked as 0."""
    strategy = protected(FedMedian(**ALL | {"fraction_train": 0.34}), settings(kind="local_dp"), 3)
    ledger = ledger_of(strategy)
    assert ledger is not None and type(strategy) is FedMedian
    counts = [0, 0, 0]
    for server_round in range(1, 6):
        for message in asked(strategy, grid, server_round):
            counts[message.metadata.dst_node_id] += 1
    assert sum(counts) == 5
    costs = [by_hand(0.5, count, 1e-5) if count else 0.0 for count in counts]
    spent = ledger.spent()
    assert spent["releases"] == max(counts)
    assert spent["epsilon"] == pytest.approx(max(costs), rel=1e-9)
    assert spent["epsilon_mean"] == pytest.approx(sum(costs) / 3, rel=1e-9)


@pytest.mark.parametrize("kind", ["central_dp", "local_dp"])
def test_a_ledger_goes_on_where_another_ended_and_knows_its_end(kind: str, grid: LocalGrid) -> None:
    """By hand, for z = 0.5, epsilon is 10.7 after one release, 16.5 after two and 21.5 after three."""
    own = settings(kind=kind, max_epsilon=20.0)
    strategy = protected(StreamingFedAvg(**ALL), own, 3)
    first = ledger_of(strategy)
    for server_round in (1, 2):
        assert first is not None and not first.is_exhausted()
        strategy.aggregate_train(server_round, answered(asked(strategy, grid, server_round)))
    strategy = protected(StreamingFedAvg(**ALL), own, 3)
    second = ledger_of(strategy)
    assert second is not None and is_packable(first.state_dict())
    second.load_state_dict(first.state_dict())
    assert second.spent() == first.spent() and second.is_exhausted()
    assert second.spent()["epsilon"] == pytest.approx(by_hand(0.5, 2, 1e-5), rel=1e-9)
    assert "max_epsilon=20.0" in second.remarks()[-1]
    assert StrategyState(strategy).left_out() == []


def test_noise_that_is_not_seeded_differs_from_what_the_seed_would_give(grid: LocalGrid) -> None:
    def aggregate(seeded: bool) -> torch.Tensor:
        strategy = protected(StreamingFedAvg(**ALL), settings(seeded_noise=seeded), 3)
        replies = answered(asked(strategy, grid))
        np.random.seed(1)
        return to_tensors(strategy.aggregate_train(1, replies)[0])["a"]

    def send(seeded: bool) -> torch.Tensor:
        np.random.seed(1)
        (reply,) = sent_by_a_client(settings(kind="local_dp", seeded_noise=seeded), SENT, trained_by_first())
        return to_tensors(reply.content["arrays"])["a"]

    for draw in (aggregate, send):
        assert torch.equal(draw(True), draw(True))
        assert not torch.equal(draw(False), draw(False)) and not torch.equal(draw(False), draw(True))


def test_clients_that_have_not_moved_do_not_show(grid: LocalGrid) -> None:
    """Flower's clipping divides by the norm of the update."""
    strategy = protected(StreamingFedAvg(**ALL), settings(), 3)
    np.random.seed(3)
    arrays, _ = strategy.aggregate_train(1, answered(asked(strategy, grid), SENT))
    rng = np.random.RandomState(3)
    for name, tensor in to_tensors(arrays).items():
        noise = torch.tensor(rng.normal(0, 0.5 * 2 / 3, tensor.shape), dtype=torch.float32)
        torch.testing.assert_close(tensor, SENT[name] + noise, rtol=0, atol=2e-6)
    np.random.seed(3)
    (reply,) = sent_by_a_client(settings(kind="local_dp"), SENT, SENT)
    rng = np.random.RandomState(3)
    for name, tensor in to_tensors(reply.content["arrays"]).items():
        noise = torch.tensor(rng.normal(0, 2 * 2 * 0.5, tensor.shape), dtype=torch.float32)
        torch.testing.assert_close(tensor, SENT[name] + noise, rtol=0, atol=2e-6)
    (reply,) = sent_by_a_client(settings(clipping="client"), SENT, SENT, {"clipping_norm": 2.0})
    assert all((tensor - SENT[n]).abs().max() < 2e-6 for n, tensor in to_tensors(reply.content["arrays"]).items())


@pytest.mark.parametrize("kind", ["central_dp", "local_dp"])
def test_a_resumed_run_with_fresh_noise_pays_for_the_round_that_was_cut_off(kind: str, grid: LocalGrid) -> None:
    for seeded, more in ((True, 0), (False, 1)):
        first, second = (protected(StreamingFedAvg(**ALL), settings(kind=kind, seeded_noise=seeded), 3) for _ in "ab")
        first.aggregate_train(1, answered(asked(first, grid)))
        ledger_of(second).load_state_dict(ledger_of(first).state_dict())
        assert ledger_of(first).spent()["releases"] == 1
        assert ledger_of(second).spent()["releases"] == 1 + more


class Weighted(StreamingFedAvg):
    """A strategy with a user's own weights; nobody knows what they read."""

    def log_weight(self, metrics: MetricRecord) -> float:
        return float(metrics["num-examples"])


@pytest.mark.parametrize("strategy", [Weighted(**ALL), FedMedian(**ALL), Krum(**ALL)], ids=lambda s: type(s).__name__)
def test_central_privacy_takes_the_plain_mean_only_and_local_privacy_any(strategy: Any) -> None:
    with pytest.raises(ValueError, match=f"plain mean, which {type(strategy).__name__} .* privacy=local_dp"):
        protected(strategy, settings(), 3)
    assert protected(strategy, settings(kind="local_dp"), 3) is strategy


def test_without_privacy_a_strategy_is_left_alone() -> None:
    strategy = StreamingFedAvg(**ALL)
    assert protected(strategy, PrivacySettings(), 3) is strategy and ledger_of(strategy) is None
    assert privacy_mods(PrivacySettings()) == [] and "configure_train" not in vars(strategy)


def test_the_noise_is_made_for_as_many_clients_as_the_strategy_asks() -> None:
    strategy = StreamingFedAvg(**ALL | {"fraction_train": 0.3})
    assert train_size(strategy, 10) == 3
    wrapped: Any = protected(strategy, settings(), 10)
    assert wrapped.num_sampled_clients == 3


def test_a_missing_accountant_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    privacy.epsilon.cache_clear()
    for kind in ("central_dp", "local_dp"):
        with pytest.raises(ValueError, match=r"need dp-accounting.*: pip install .* '\.\[privacy\]'"):
            protected(StreamingFedAvg(**ALL), settings(kind=kind), 3)


def test_flowers_adaptive_clipping_moves_away_from_the_updates(grid: LocalGrid) -> None:
    """This is why privacy= has no adaptive clipping: the norm grows for short updates and shrinks for long ones.

    Seen with Flower 1.41.
    """
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping

    for scale, grows in ((0.01, True), (100.0, False)):
        strategy = DifferentialPrivacyServerSideAdaptiveClipping(FedAvg(**ALL), 0.0, 3, initial_clipping_norm=1.0)
        for server_round in range(1, 4):
            trained = {name: SENT[name] + scale * torch.ones_like(SENT[name]) for name in SENT}
            strategy.aggregate_train(server_round, answered(asked(strategy, grid, server_round), trained))
        assert (strategy.clipping_norm > 1) is grows
