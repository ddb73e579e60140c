"""The decay of a client: which one is in force, which comes next, and which accuracies decide."""

from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.app import Client, ClientPairs, client_app
from clients.trainer import LocalTrainer
from fed.grids.local import LocalGrid
from fed.model.arrays import model_tensors, to_record
from fed.model.policy import Policy
from fed.model.references import with_reference
from support.federations import Log as BaseLog
from support.federations import dpo_loss
from support.local_settings import local_settings
from support.pairs import examples


class Log(BaseLog):
    """A log that keeps the values of every step too."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[dict[str, float]] = []

    def update(self, client_id: int, split: str, metrics: Any, *, step: int) -> None:
        self.steps.append(dict(metrics))


def visits(policy: Policy, *rates: float, accuracy_on: str = "server", **config: Any) -> Log:
    """Let a client train round after round with these learning rates, from weights that are not the reference."""
    pairs = with_reference(policy, examples(24), batch_size=8, cache=None, weights_hash="")
    rng = torch.Generator().manual_seed(0)
    moved = {
        name: tensor + 0.02 * torch.randn(tensor.shape, generator=rng)
        for name, tensor in model_tensors(policy.model).items()
    }
    context, log = Context(0, 0, {"partition-id": 0}, RecordDict(), {}), Log()
    for server_round, lr in enumerate(rates, start=1):
        settings = local_settings(loss=dpo_loss, optimizer="AdamW", lr=lr, warmup_steps=0)
        own = ClientPairs(pairs[:16], pairs[16:], pairs[16:])
        app = client_app(Client(LocalTrainer(policy, settings), [own], log, accuracy_on=accuracy_on), [])
        LocalGrid(app, [])  # messages need a run
        record = {"arrays": to_record(moved), "config": ConfigRecord({"server-round": server_round, **config})}
        app(Message(RecordDict(record), 0, "train"), context)
    return log


def decays(log: Log) -> list[tuple[float, float]]:
    return [(line["decay"], line["decay_next"]) for _, line in log.clients[0, "train"]]


def test_decay_is_the_one_in_force_and_decay_next_the_following(policy: Policy) -> None:
    """Nobody beats a server's accuracy of 1: the rounds have 1, 1/2 and 1/4."""
    log = visits(policy, 0.0, 0.0, 0.0, **{"decay-rate": 0.5, "decay-mode": "cumulative", "server-accuracy": 1.0})
    assert decays(log) == [(1.0, 0.5), (0.5, 0.25), (0.25, 0.125)]
    assert [step["decay"] for step in log.steps[:: len(log.steps) // 3]] == [1.0, 0.5, 0.25]


def test_a_constant_decay_is_told_as_it_is_at_every_step(policy: Policy) -> None:
    log = visits(policy, 1e-3, **{"decay-rate": 0.5, "decay-mode": "constant"})
    assert decays(log) == [(0.5, 0.5)]
    assert {step["decay"] for step in log.steps} == {0.5} and {step["lr"] for step in log.steps} == {0.5e-3}


@pytest.mark.parametrize(("lr", "next_one"), [(0.0, 0.5), (3e-3, 1.0)])
def test_on_its_own_pairs_a_client_compares_with_the_weights_it_received(
    policy: Policy, lr: float, next_one: float
) -> None:
    """It decays if it did not get better on these pairs, however well or badly the server does on its own."""
    for elsewhere in (0.0, 1.0):
        config = {"decay-rate": 0.5, "decay-mode": "cumulative", "server-accuracy": elsewhere}
        log = visits(policy, lr, accuracy_on="client", **config)
        assert log.clients[0, "validation"][0][1]["accuracy"] > 0
        assert decays(log) == [(1.0, next_one)]


def test_on_its_own_pairs_a_client_needs_no_accuracy_of_the_server(policy: Policy) -> None:
    log = visits(policy, 0.0, accuracy_on="client", **{"decay-rate": 0.5, "decay-mode": "cumulative"})
    assert decays(log) == [(1.0, 0.5)]
