"""Differential privacy by hand: epsilon, the noise, the messages of a client, and what is refused."""

import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from dp_accounting import dp_event, rdp
from dp_accounting.privacy_accountant import NeighboringRelation
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, FedMedian, FedProx, Krum

from clients.app import Client, ClientPairs, client_app
from clients.privacy import check_promise, privacy_mods
from clients.trainer import LocalTrainer
from fed import privacy
from fed.checkpoints.serialize import is_packable
from fed.config.groups import PrivacySettings
from fed.errors import Failed
from fed.grids.local import LocalGrid
from fed.model.arrays import model_tensors, snapshot, to_record, to_tensors
from fed.model.references import with_reference
from fed.privacy import moved
from server.privacy import ledger_of, protected
from server.state import StrategyState
from server.strategies import FeDPO, StreamingFedAvg
from server.traits import train_size
from support.federations import Log, dpo_loss
from support.local_settings import local_settings
from support.pairs import examples

ALL = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64), 128, 256, 512, 1024)


def by_hand(noise_multiplier: float, releases: int, delta: float, orders=ORDERS) -> float:
    """Return the least, over orders a, of T a / (2 z^2) + log((a - 1)/a) - (log delta + log a)/(a - 1).

    The first term is the RDP of T Gaussian mechanisms (Mironov, arXiv 1702.07476, Corollary 3), the others turn it into
    (epsilon, delta) (Canonne, Kamath, Steinke, arXiv 2004.00010, Proposition 12).
    """
    return min(
        releases * a / (2 * noise_multiplier**2) + math.log((a - 1) / a) - (math.log(delta) + math.log(a)) / (a - 1)
        for a in orders
    )


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("releases", [1, 7, 100])
@pytest.mark.parametrize("delta", [1e-5, 1e-3])
def test_epsilon_is_that_of_the_formula(noise_multiplier: float, releases: int, delta: float) -> None:
    found = privacy.epsilon(noise_multiplier, releases, delta)
    assert found == pytest.approx(by_hand(noise_multiplier, releases, delta), rel=1e-9)
    # Its orders are a grid from 1.1 on: of all orders the best is at most 2 % better, and that where epsilon is 700.
    best = by_hand(noise_multiplier, releases, delta, np.geomspace(1.02, 2000, 20_000))
    assert best <= found * (1 + 1e-9) and found < 1.02 * best


def test_nothing_released_costs_nothing() -> None:
    assert privacy.epsilon(1.0, 0, 1e-5) == 0


def test_two_gaussians_2c_apart_with_standard_deviation_2cz_have_the_divergence_of_z() -> None:
    """Renyi's divergence of order a, 1/(a - 1) log of the integral of p^a q^(1-a), is a/(2 z^2), here on a grid."""
    clipping_norm, z, order = 0.7, 1.3, 3.0
    std = z * 2 * clipping_norm
    x = np.linspace(-40, 40, 400_001)

    def density(mean: float) -> Any:
        return np.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))

    integral = (density(clipping_norm) ** order * density(-clipping_norm) ** (1 - order)).sum() * (x[1] - x[0])
    assert math.log(integral) / (order - 1) == pytest.approx(order / (2 * z**2), rel=1e-6)


def test_the_accountant_reads_the_noise_multiplier_and_not_the_relation() -> None:
    """So z must be the noise over what one client changes under the intended relation: C or 2 C."""
    found = set()
    for relation in (NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE):
        accountant = rdp.RdpAccountant(neighboring_relation=relation)
        accountant.compose(dp_event.GaussianDpEvent(1.5), 4)
        found.add(accountant.get_epsilon(1e-5))
    assert found == {privacy.epsilon(1.5, 4, 1e-5)}


# Strategies, told of replies by hand.


@pytest.fixture
def grid() -> LocalGrid:
    return LocalGrid(ClientApp(), [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in range(3)])


def settings(**changes: Any) -> PrivacySettings:
    return PrivacySettings(**{"kind": "central_dp", "clipping_norm": 2.0, "noise_multiplier": 0.5} | changes)


SENT = {"a": torch.tensor([1.0, -1.0]), "b": torch.tensor([[0.5]])}
# Of norm 5 (0.4 of it stays), 1 and 10 (0.2 of it stays).
UPDATES = (
    {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[4.0]])},
    {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([[0.0]])},
    {"a": torch.tensor([0.0, -6.0]), "b": torch.tensor([[8.0]])},
)
CLIPPED = {"a": torch.tensor([[1.2, 0.0], [0.0, 1.0], [0.0, -1.2]]), "b": torch.tensor([1.6, 0.0, 1.6])}


def asked(strategy: Any, grid: LocalGrid, server_round: int = 1, weights: Any = None) -> list[Message]:
    return list(strategy.configure_train(server_round, to_record(weights or SENT), ConfigRecord(), grid))


def answered(messages: list[Message], weights: Any = None) -> list[Message]:
    """Return the replies of clients that learned `UPDATES`, or that send the given weights."""
    found = []
    for message, update in zip(messages, UPDATES, strict=True):
        arrays = weights or {name: SENT[name] + update[name] for name in SENT}
        records = {"arrays": to_record(arrays), "metrics": MetricRecord({"num-examples": 1})}
        found.append(Message(RecordDict(records), reply_to=message))
    return found


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


def sent_by_a_client(settings: PrivacySettings, sent: Any, trained: Any, config: Any = None) -> list[Message]:
    """Return the reply of an app that has the mods of these settings, trained weights and metrics of its own."""
    app = ClientApp(mods=privacy_mods(settings))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 17, "accuracy": 0.625, "train_loss": 0.3, "decay": 0.9})
        told = ConfigRecord({"words": "of mine"})
        return Message(RecordDict({"arrays": to_record(trained), "metrics": metrics, "own": told}), reply_to=message)

    LocalGrid(app, [])
    record = RecordDict({"arrays": to_record(sent), "config": ConfigRecord(config or {})})
    return [app(Message(record, 0, "train"), Context(0, 0, {"partition-id": 0}, RecordDict(), {}))]


def test_a_client_under_local_privacy_sends_its_clipped_update_plus_noise_of_2_c_z() -> None:
    np.random.seed(3)
    trained = {name: SENT[name] + UPDATES[0][name] for name in SENT}
    (reply,) = sent_by_a_client(settings(kind="local_dp"), SENT, trained)
    rng = np.random.RandomState(3)
    for name, tensor in to_tensors(reply.content["arrays"]).items():
        noise = torch.tensor(rng.normal(0, 2 * 2 * 0.5, tensor.shape), dtype=torch.float32)
        torch.testing.assert_close(tensor, SENT[name] + 0.4 * UPDATES[0][name] + noise, rtol=1e-6, atol=1e-6)
    assert list(reply.content) == ["arrays", "metrics"] and dict(reply.content["metrics"]) == {"num-examples": 1}


def test_clients_that_clip_themselves_send_no_more_than_the_norm() -> None:
    trained = {name: SENT[name] + UPDATES[2][name] for name in SENT}
    (reply,) = sent_by_a_client(settings(clipping="client"), SENT, trained, {"clipping_norm": 2.0})
    for name, tensor in to_tensors(reply.content["arrays"]).items():
        torch.testing.assert_close(tensor, SENT[name] + 0.2 * UPDATES[2][name])
    assert dict(reply.content["metrics"]) == {"num-examples": 1}


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


@pytest.mark.parametrize("changes", [{}, {"clipping": "client"}, {"kind": "local_dp"}], ids=str)
def test_two_clients_of_different_data_differ_in_nothing_but_their_arrays(policy, changes: dict[str, str]) -> None:
    """Two clients train 6 and 9 different pairs; all messages of two rounds are compared, and of an evaluation."""
    own = settings(**changes)
    pairs = [
        ClientPairs(with_reference(policy, examples(count, seed=count), batch_size=8, cache=None, weights_hash=""))
        for count in (6, 9)
    ]
    trainer = LocalTrainer(policy, local_settings(loss=dpo_loss, optimizer="AdamW", lr=3e-3))
    pairs = [ClientPairs(pair.train, pair.train[:3], pair.train[:4]) for pair in pairs]
    app = client_app(Client(trainer, pairs, Log()), privacy_mods(own))
    grid = LocalGrid(app, [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in range(2)])
    weights = snapshot(model_tensors(policy.model))
    for server_round, kind in ((1, "train"), (2, "train"), (3, "evaluate")):
        grid.begin(server_round)
        config = ConfigRecord({"server-round": server_round, "clipping_norm": 2.0})
        record = RecordDict({"arrays": weights, "config": config})
        replies = list(grid.send_and_receive([Message(record, node, kind) for node in range(2)]))
        if kind == "evaluate" and changes:  # Flower's mods know training only
            assert all(reply.has_error() for reply in replies)
            continue
        for reply in replies:
            assert list(reply.content) == (["arrays", "metrics"] if kind == "train" else ["metrics"])
            assert dict(reply.content["metrics"]) == {"num-examples": 1}
        if kind == "train":
            first, second = (to_tensors(reply.content["arrays"]) for reply in replies)
            assert {name: (t.shape, t.dtype) for name, t in first.items()} == {
                name: (t.shape, t.dtype) for name, t in second.items()
            }
            assert not all(torch.equal(first[name], second[name]) for name in first)


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


def trained_by_first() -> dict[str, torch.Tensor]:
    return {name: SENT[name] + UPDATES[0][name] for name in SENT}


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


def test_all_zeros_that_have_not_moved_can_be_clipped() -> None:
    zeros = {"empty": torch.zeros(0), "a": torch.zeros(3)}
    changed = to_tensors(moved(to_record(zeros), to_record(zeros)))
    assert float(changed["a"].float().square().sum()) > 0 and float(changed["a"].abs().max()) < 1e-9
    other = to_record({"a": torch.ones(3)})
    assert moved(to_record({"a": torch.zeros(3)}), other) is other


def test_a_client_keeps_arrays_of_its_own_mods_to_itself() -> None:
    app = ClientApp(mods=privacy_mods(settings()))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        own = {"arrays": to_record(SENT), "more": to_record(SENT), "metrics": MetricRecord({"num-examples": 17})}
        return Message(RecordDict(own), reply_to=message)

    LocalGrid(app, [])
    reply = app(Message(RecordDict({"arrays": to_record(SENT)}), 0, "train"), Context(0, 0, {}, RecordDict(), {}))
    assert set(reply.content) == {"arrays", "metrics"}


@pytest.mark.parametrize(
    ("run", "demanded", "words"),
    [
        ({"kind": "none"}, {}, None),
        ({"kind": "none"}, {"privacy.kind": "local_dp"}, "privacy=local_dp only, the run has privacy=none"),
        ({"kind": "central_dp"}, {"privacy.kind": "local_dp"}, "the run has privacy=central_dp"),
        ({"kind": "local_dp"}, {"privacy.kind": "local_dp", "privacy.noise_multiplier": 1}, "multiplier=1 on.* 0.5"),
        ({"kind": "none"}, {"privacy.noise_multiplier": 0.1}, "multiplier=0.1 on, the run has privacy=none"),
        ({"kind": "local_dp"}, {"privacy.kind": "local_dp", "privacy.noise_multiplier": 0.5}, None),
        ({"kind": "local_dp", "seeded_noise": True}, {}, "whoever knows the seed"),
    ],
)
def test_the_owner_of_data_insists_on_a_promise(run: Any, demanded: Any, words: str | None) -> None:
    """The owner's demand decides, whatever the server says."""
    promised = settings(**{"seeded_noise": False, **run})
    if words is None:
        check_promise(promised, demanded)
        return
    with pytest.raises(Failed, match=words):
        check_promise(promised, demanded)


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
        with pytest.raises(ValueError, match=r"need dp-accounting.*pip install 'fedpo\[privacy\]'"):
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


def test_a_trusted_server_gets_the_weights_as_they_are_and_clips_them_itself() -> None:
    (reply,) = sent_by_a_client(settings(), SENT, trained_by_first())
    assert all(torch.equal(t, trained_by_first()[n]) for n, t in to_tensors(reply.content["arrays"]).items())
