"""Tests of strategy, clients and evaluation together: whole runs of a two-layer model."""

import copy
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest
import torch
from flwr.serverapp.strategy import FedAdam, FedAvg
from omegaconf import OmegaConf

from clients.app import Client, ClientPairs, client_app
from clients.settings import RoundSettings
from clients.state import ClientState
from clients.trainer import LocalTrainer
from fed.config import components, schema
from fed.grids.settings import LocalGridSettings
from fed.model.arrays import load_arrays, model_tensors, snapshot, to_tensors
from fed.model.evaluation import evaluate_pairs
from fed.model.policy import Policy
from fed.model.references import with_reference
from fed.seeding import seed_globals
from fed.simulation import ServerSide, simulate
from losses.sft import sft
from server.app import server_app
from server.evaluate import ServerEvaluation
from server.strategies import FeDPO, StreamingFedAvg
from server.traits import asks, check_strategy
from support.federations import Log, dpo_loss, everyone
from support.local_settings import local_settings
from support.pairs import examples

STRATEGIES = sorted(path.stem for path in Path("config/strategy").glob("*.yaml"))


def federate(policy, strategy, *, clients=3, rounds=2, loss=dpo_loss, mods=(), frequency=1, **changes):
    """Train a copy of the policy, and return the final weights and the log."""
    policy = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.device)

    def referenced(pairs):
        return with_reference(policy, pairs, batch_size=8, cache=None, weights_hash="")

    validation, test = referenced(examples(16, seed=100)), referenced(examples(16, seed=101))
    pairs = [
        ClientPairs(referenced(examples(6 + k, seed=k)), referenced(examples(4, seed=50 + k)), validation)
        for k in range(clients)
    ]
    log = Log()
    settings = local_settings(
        **{"loss": loss, "optimizer": "AdamW", "lr": 3e-3, "warmup_steps": 0, "eval_batch_size": 8} | changes
    )
    evaluation = evaluation_of(
        policy, strategy, {"validation": validation, "test": test}, log, loss, (rounds, frequency)
    )
    seed_globals(0, "test")
    server = ServerSide(
        partial(server_app, strategy=strategy, train_config=evaluation.train_config, num_rounds=rounds),
        snapshot(model_tensors(policy.model)),
        evaluation,
        on_traffic=lambda *traffic: log.traffic.append(traffic),
    )
    final = simulate(
        server,
        client_app(Client(LocalTrainer(policy, settings), pairs, log), mods),
        range(clients),
        LocalGridSettings(streams=getattr(strategy, "streams", False)),
    )
    load_arrays(policy.model, final)
    return to_tensors(snapshot(model_tensors(policy.model))), log


def evaluation_of(policy, strategy, splits, log, loss, how_often) -> ServerEvaluation:
    rounds, frequency = how_often

    def score(policy, pairs):
        return evaluate_pairs(policy, pairs, loss=loss, beta=0.5, batch_size=8)

    asked = asks(strategy, "needs_server_accuracy")
    return ServerEvaluation(policy, splits, score, log, rounds, frequency, always_accuracy=asked)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_one_client_is_centralised_training_bit_for_bit(policy):
    """Two rounds of FeDPO over one client are two passes of plain training that keeps its optimizer."""
    federated, _ = federate(
        policy, FeDPO(decay_rate=1.0, **everyone()), clients=1, rounds=2, client_optimizer="persist"
    )
    direct = Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.device)
    pairs = with_reference(direct, examples(6, seed=0), batch_size=8, cache=None, weights_hash="")
    settings = local_settings(
        loss=dpo_loss, optimizer="AdamW", lr=3e-3, warmup_steps=0, local_epochs=2, client_optimizer="persist"
    )
    LocalTrainer(direct, settings).train(0, pairs, (), ClientState(), RoundSettings(), Log())
    assert same(federated, to_tensors(snapshot(model_tensors(direct.model))))


def test_the_same_seed_twice_gives_the_same_bits_and_another_seed_does_not(policy):
    def strategy():
        return FeDPO(**everyone(fraction_train=0.5))

    first, log = federate(policy, strategy(), clients=4, seed=1)
    second, again = federate(policy, strategy(), clients=4, seed=1)
    other, _ = federate(policy, strategy(), clients=4, seed=2)
    assert same(first, second)
    assert log.rounds == again.rounds and log.trained == again.trained
    assert not same(first, other)


def test_unfused_flower_fedavg_and_the_streaming_one_train_the_same_model(policy):
    ours, _ = federate(policy, StreamingFedAvg(**everyone()))
    theirs, _ = federate(policy, FedAvg(**everyone()))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_shipped_strategy_trains(policy, name):
    """A run loads it from its YAML file; after two rounds the weights are finite float32 and have moved."""
    schema.register()
    top = OmegaConf.create(
        {"clients_per_round": None, "client_num_in_total": 7, "lr": 3e-3, "temp": 0.1, "decay_rate": 0.995}
        | {"weighting": "accuracy", "max_client_weight": None}
    )
    raw = OmegaConf.load(f"config/strategy/{name}.yaml")
    node = OmegaConf.merge(top, raw if "strategy" in raw and "_target_" not in raw else {"strategy": raw})
    resolved = OmegaConf.to_container(node, resolve=True)
    strategy = components.create("strategy", resolved["strategy"], ())
    check_strategy(strategy, 7)
    mods = [components.imported("client_mods", path) for path in resolved.get("client_mods", [])]

    final, log = federate(policy, strategy, clients=7, mods=mods)

    before = model_tensors(policy.model)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in final.values())
    assert any(not torch.equal(final[name], before[name]) for name in before)
    assert len(log.rounds["test"]) == 3
    assert log.rounds["test"][0][1]["ties"] == 1.0


def test_r_rounds_give_r_plus_one_points_and_frequency_skips_some_but_never_the_last(policy):
    for rounds, frequency, expected in ((3, 1, [0, 1, 2, 3]), (3, 2, [0, 2, 3]), (4, 3, [0, 3, 4]), (2, 5, [0, 2])):
        _, log = federate(policy, FeDPO(**everyone()), clients=1, rounds=rounds, frequency=frequency)
        assert [server_round for server_round, _ in log.rounds["validation"]] == expected
        assert [server_round for server_round, _ in log.rounds["test"]] == expected


def test_two_bad_rounds_decay_to_0_990025_and_a_client_that_learns_does_not_decay(policy):
    """A learning rate of 0 leaves a_k = A^t = 0 (ties) in both rounds; a client that learns beats A^0 = 0 at once."""
    _, log = federate(policy, FeDPO(decay_rate=0.995, **everyone()), clients=2, rounds=2, lr=0.0)
    decays = [metrics["decay_next"] for _, metrics in log.clients[0, "train"]]
    assert decays == pytest.approx([0.995, 0.990025], abs=1e-12)
    _, log = federate(policy, FeDPO(decay_rate=0.995, **everyone()), clients=2, rounds=1, lr=3e-3)
    assert [metrics["decay_next"] for _, metrics in log.clients[0, "train"]] == [1.0]


def test_decay_compares_with_the_accuracy_of_the_model_sent_even_between_logged_evaluations(policy):
    """Frequency 3 logs rounds 0 and 3 only, yet clients of rounds 2 and 3 must know A^1 and A^2."""
    logged, _ = federate(policy, FeDPO(**everyone()), rounds=3, frequency=1)
    sparse, log = federate(policy, FeDPO(**everyone()), rounds=3, frequency=3)
    assert same(logged, sparse)
    assert [server_round for server_round, _ in log.rounds["validation"]] == [0, 3]


def test_a_wrapped_strategy_decays_whatever_is_logged(policy):
    """The wrapper clips at 1e9 and adds no noise; long steps make some clients worse than what they were sent."""
    wrapper = components.imported("x", "flwr.serverapp.strategy.DifferentialPrivacyServerSideFixedClipping")
    decays = {}
    for frequency in (1, 4):
        strategy = wrapper(FeDPO(decay_rate=0.5, **everyone()), 0.0, 1e9, 3)
        _, log = federate(policy, strategy, rounds=4, frequency=frequency, lr=0.05)
        decays[frequency] = [[m["decay_next"] for _, m in log.clients[client, "train"]] for client in range(3)]
    assert decays[1] == decays[4]
    assert min(map(min, decays[1])) < 1


def test_a_strategy_without_decay_never_decays(policy):
    _, log = federate(policy, StreamingFedAvg(**everyone()), lr=0.0)
    assert {metrics["decay"] for _, metrics in log.clients[0, "train"]} == {1.0}


def test_constant_decay_scales_every_round_and_is_not_kept(policy):
    half, log = federate(policy, FeDPO(decay="constant", decay_rate=0.5, **everyone()), lr=2e-3, rounds=1)
    plain, _ = federate(policy, FeDPO(decay_rate=1.0, **everyone()), lr=1e-3, rounds=1)
    assert same(half, plain)
    assert [metrics["decay"] for _, metrics in log.clients[0, "train"]] == [0.5]


def test_clients_per_round_trains_exactly_that_many_and_not_always_the_same(policy):
    _, log = federate(policy, FeDPO(**everyone(fraction_train=2 / 6, min_train_nodes=2)), clients=6, rounds=4)
    by_round = defaultdict(set)
    for server_round, client in log.trained:
        by_round[server_round].add(client)
    assert [len(clients) for clients in by_round.values()] == [2, 2, 2, 2]
    assert len(set.union(*by_round.values())) > 2


def test_clients_are_scored_with_their_final_weights(policy):
    """One client, one round: the aggregate is that client, so its score is the server's next evaluation."""
    _, log = federate(policy, FeDPO(**everyone()), clients=1, rounds=1)
    (_, scored), (_, evaluated) = log.clients[0, "validation"][0], log.rounds["validation"][-1]
    assert scored == evaluated


def test_federated_supervised_training_lowers_the_loss_on_held_out_pairs(policy):
    _, log = federate(policy, StreamingFedAvg(**everyone()), loss=sft, supervised=True, rounds=3)
    losses = [metrics["loss"] for _, metrics in log.rounds["test"]]
    assert losses[-1] < losses[0]


def test_clients_evaluate_on_their_own_pairs_when_the_strategy_asks(policy):
    strategy = FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1)
    found = {}
    aggregate = strategy.aggregate_evaluate
    strategy.aggregate_evaluate = lambda number, replies: found.setdefault(number, aggregate(number, replies))
    federate(policy, strategy, rounds=1)
    assert found[1].keys() == {"accuracy", "margin", "loss"}
    assert 0 < found[1]["accuracy"] <= 1


def test_fedprox_stays_nearer_to_the_received_weights_than_fedavg(policy):
    from flwr.serverapp.strategy import FedProx

    start = {name: tensor.clone() for name, tensor in model_tensors(policy.model).items()}

    def distance(strategy) -> float:
        final, _ = federate(policy, strategy, rounds=1, local_epochs=4)
        return float(sum(((final[name] - start[name]) ** 2).sum() for name in start))

    assert distance(FedProx(proximal_mu=50.0, **everyone())) < 0.7 * distance(FedAvg(**everyone()))


def test_a_strategy_that_waits_for_more_clients_than_exist_is_refused_through_wrappers():
    inner = FedAvg(min_train_nodes=1, min_available_nodes=11)
    wrapper = components.imported("x", "flwr.serverapp.strategy.DifferentialPrivacyServerSideFixedClipping")
    with pytest.raises(ValueError, match="min_available_nodes=11 clients but client_num_in_total=10"):
        check_strategy(wrapper(inner, 0.1, 1.0, 10), 10)
    check_strategy(wrapper(inner, 0.1, 1.0, 10), 11)


def test_accuracy_and_margin_are_those_of_the_margins_of_single_pairs(policy):
    _, log = federate(policy, FedAvg(**everyone()))
    assert log.margins.keys() == {0, 1, 2} and set(log.margins[0]) == {0.0}
    for server_round, metrics in log.rounds["test"]:
        margins = log.margins[server_round]
        assert len(margins) == 16
        assert sum(margin > 0 for margin in margins) / 16 == metrics["accuracy"]
        assert sum(margins) / 16 == pytest.approx(metrics["margin"], rel=1e-12)


@pytest.mark.parametrize("strategy", [FeDPO, FedAvg, FedAdam], ids=lambda cls: cls.__name__)
def test_what_travels_is_counted_in_bytes(policy, strategy):
    """Two of three clients a round get all weights, 4 bytes each, and send them; FedAdam's float64 travels so too."""
    size = 4 * sum(parameter.numel() for parameter in policy.model.parameters())
    _, log = federate(policy, strategy(**everyone(fraction_train=0.67, min_train_nodes=2)))
    assert log.traffic == [(1, 2 * size, 2 * size), (2, 2 * size, 2 * size)]


def test_the_weights_that_clients_evaluate_travel_too(policy):
    size = 4 * sum(parameter.numel() for parameter in policy.model.parameters())
    _, log = federate(policy, FedAvg(min_train_nodes=1, min_evaluate_nodes=1, min_available_nodes=1))
    assert log.traffic == [(1, 6 * size, 3 * size), (2, 6 * size, 3 * size)]


@pytest.mark.parametrize(
    ("name", "values", "clients", "needed"),
    [("Krum", 4, 10, 11), ("MultiKrum", 1, 4, 5), ("Bulyan", 2, 10, 11), ("Bulyan", 0, 2, 3)],
)
def test_byzantine_strategies_need_enough_honest_clients(name, values, clients, needed):
    strategy = components.imported("x", f"flwr.serverapp.strategy.{name}")(num_malicious_nodes=values, **everyone())
    with pytest.raises(ValueError, match=f"needs {needed} clients a round, there are {clients}"):
        check_strategy(strategy, clients)
    check_strategy(strategy, needed)


def test_multikrum_cannot_select_more_clients_than_train():
    strategy = components.imported("x", "flwr.serverapp.strategy.MultiKrum")(num_nodes_to_select=6, **everyone())
    with pytest.raises(ValueError, match="select 6 of 5 clients"):
        check_strategy(strategy, 5)
