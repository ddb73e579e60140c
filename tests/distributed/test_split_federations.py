"""Strategies, mods and several clients at once give with split models what they give with whole ones."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp.strategy import (
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    Krum,
    QFedAvg,
    Strategy,
)

from clients.privacy import privacy_mods
from fed.config.groups import PrivacySettings
from fed.model.arrays import to_record
from server.strategies import FeDPO, StreamingFedAvg
from server.traits import takes_parts
from support.federations import everyone
from support.split_models import (
    FLIPPED,
    Saved,
    assert_same,
)

# Strategies


class OwnWeights(FeDPO):
    """A strategy that changes the weight of a client, number by number."""

    def log_weight(self, metrics):
        return 2 * super().log_weight(metrics)


class FarthestOut(FeDPO):
    """A strategy that leaves out the client farthest from zero: it needs whole arrays, and all of them."""

    def aggregate_train(self, server_round, replies):
        replies = sorted(replies, key=lambda reply: norm(reply.content["arrays"]))
        return super().aggregate_train(server_round, replies[:-1])


class Declared(FarthestOut):
    """A strategy that claims to be elementwise and is not."""

    elementwise = True


def norm(record) -> float:
    return math.sqrt(sum(float((array.numpy() ** 2).sum()) for array in record.values()))


def clipped(message, context, call_next):
    """Scale all arrays that a client sends to norm 5, as a mod of the user's may do."""
    reply = call_next(message, context)
    factor = 5 / norm(reply.content["arrays"])
    tensors = {name: torch.from_numpy(a.numpy()) * factor for name, a in reply.content["arrays"].items()}
    reply.content["arrays"] = to_record(tensors)
    return reply


def server_side_privacy() -> Strategy:
    return DifferentialPrivacyServerSideFixedClipping(FeDPO(**everyone()), 0.01, 0.05, 3)


def client_side_privacy() -> Strategy:
    return DifferentialPrivacyClientSideFixedClipping(FedAvg(**everyone()), 0.01, 0.05, 3)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (FeDPO(), True),
        (StreamingFedAvg(), True),
        (FedAvg(), True),
        (FedAdam(), True),
        (FedMedian(), True),
        (FedTrimmedAvg(), True),
        (FedProx(proximal_mu=0.1), True),
        (OwnWeights(), True),
        (FarthestOut(), False),
        (Declared(), True),
        (type("MyAverage", (FedAvg,), {})(), False),
        (Krum(), False),
        (QFedAvg(client_learning_rate=0.1), False),
        (server_side_privacy(), False),
        (client_side_privacy(), False),
    ],
)
def test_a_strategy_takes_parts_if_it_is_known_or_says_to_be_elementwise(strategy: Strategy, expected: bool) -> None:
    assert takes_parts(strategy) is expected


OWN_CLIPPING = PrivacySettings(kind="central_dp", clipping="client", clipping_norm=0.05)
STRATEGIES: dict[str, tuple[Callable[[], Strategy], list[Any]]] = {
    "number by number": (lambda: FedAdam(eta=0.1, tau=0.1, **everyone()), []),
    "with FedProx's term": (lambda: FedProx(proximal_mu=1.0, **everyone()), []),
    "the user's own": (lambda: FarthestOut(**everyone()), []),
    "privacy by the server": (server_side_privacy, []),
    "privacy by the clients": (client_side_privacy, [fixedclipping_mod]),
    "privacy= by the clients": (client_side_privacy, privacy_mods(OWN_CLIPPING)),
    "a mod": (lambda: FeDPO(**everyone()), [clipped]),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_and_mods_make_of_two_processes_what_they_make_of_one(
    saved: Saved, alone, together, name: str
) -> None:
    strategy, mods = STRATEGIES[name]
    expected = alone(saved("gpt2"), strategy=strategy, mods=mods)
    assert_same(together(2, saved("gpt2"), strategy=strategy, mods=mods), expected)


# Several clients at once: the first process writes each client's metrics once


@pytest.mark.parametrize(("count", "groups", "clients"), [(2, 2, 3), (4, 2, 3), (4, 4, 4)])
def test_clients_trained_at_once_average_as_one_after_the_other(
    saved: Saved, alone, together, count: int, groups: int, clients: int
) -> None:
    expected = alone(saved("llama, tied"), clients=clients, comm_round=1)
    found = together(count, saved("llama, tied"), clients=clients, comm_round=1, clients_in_parallel=groups)
    assert_same(found, expected, weights=1e-6)


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        (lambda: FedAdam(eta=0.1, tau=0.1, **everyone()), {}),
        (
            lambda: FedMedian(**everyone(fraction_train=0.5, min_train_nodes=3)),
            {"clients": 6, "optimizer": "AdamW", "lr": 3e-3, "client_optimizer": "persist"},
        ),
        (server_side_privacy, {"mods": [clipped]}),
    ],
)
def test_strategies_that_see_all_replies_get_the_bits_of_one_process(
    saved: Saved, alone, together, strategy: Callable[[], Strategy], changes: dict[str, Any]
) -> None:
    how = {"strategy": strategy, "comm_round": 3, **changes}
    found = together(2, saved("llama, tied"), clients_in_parallel=2, **how)
    assert_same(found, alone(saved("llama, tied"), **how), loss=0, weights=0)


@pytest.mark.parametrize(
    ("strategy", "mods", "changes"),
    [
        (lambda: Krum(num_malicious_nodes=0, **everyone()), [], {}),
        (lambda: FeDPO(**everyone()), [clipped], {}),
        (lambda: Krum(num_malicious_nodes=0, **everyone()), [], {"wire_dtype": "bfloat16"}),
    ],
)
def test_whole_arrays_travel_between_groups_that_each_split_a_model(
    saved: Saved, alone, together, strategy: Callable[[], Strategy], mods: list[Any], changes: dict[str, Any]
) -> None:
    how = {"strategy": strategy, "mods": mods, **changes}
    expected = alone(saved("llama, tied"), **how)
    bounds = FLIPPED if changes else {}
    assert_same(together(4, saved("llama, tied"), clients_in_parallel=2, **how), expected, **bounds)


def test_parts_travel_in_bfloat16_as_the_whole_does(saved: Saved, alone, together) -> None:
    expected = alone(saved("llama, tied"), wire_dtype="bfloat16")
    assert_same(together(2, saved("llama, tied"), wire_dtype="bfloat16"), expected, **FLIPPED)
