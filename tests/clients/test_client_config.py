"""Keys of a message's config are obeyed or refused, never ignored."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from clients.app import READ, Client, ClientPairs, client_app
from clients.trainer import LocalTrainer
from fed.errors import CannotContinue
from fed.grids.local import LocalGrid
from fed.model.arrays import model_tensors, to_record
from fed.model.policy import Policy
from support.federations import Log, dpo_loss
from support.local_settings import local_settings
from support.pairs import examples
from support.training import referenced


class Steps(Log):
    """A log that keeps the learning rate of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []

    def update(self, client_id: int, split: str, metrics: Any, *, step: int) -> None:
        self.rates.append(metrics["lr"])


def rates(
    policy: Policy,
    *,
    strict: bool = True,
    decay_target: str = "loss",
    to: str = "train",
    more: Mapping[str, Any] = MappingProxyType({}),
    **config: Any,
) -> list[float]:
    """Send a client this config, and `more` records, and return the learning rates of its two steps."""
    log, pairs = Steps(), referenced(policy, examples(8))
    settings = local_settings(loss=dpo_loss, lr=0.5, warmup_steps=1, batch_size=4, decay_target=decay_target)
    own = ClientPairs(pairs, pairs[:2], pairs)
    app = client_app(Client(LocalTrainer(policy, settings), [own], log, strict=strict), [])
    LocalGrid(app, [])  # messages need a run
    record = {"arrays": to_record(model_tensors(policy.model)), "config": ConfigRecord(config), **more}
    app(Message(RecordDict(record), 0, to), Context(0, 0, {"partition-id": 0}, RecordDict(), {}))
    return log.rates


def test_lr_in_the_config_is_the_rounds_before_warm_up_and_decay(policy: Policy) -> None:
    assert rates(policy) == [0.25, 0.5]
    assert rates(policy, lr=0.01) == [0.005, 0.01]
    constant = {"decay-rate": 0.5, "decay-mode": "constant"}
    assert rates(policy, decay_target="lr", lr=0.01, **constant) == [0.0025, 0.005]


@pytest.mark.parametrize("key", ["learning-rate", "local-epochs", "clipping_norm"])
def test_a_key_that_nothing_reads_is_refused_with_those_that_are_read(policy: Policy, key: str) -> None:
    with pytest.raises(CannotContinue, match=f"sends clients {key}=3, which nothing reads; clients read {READ[0]}, "):
        rates(policy, **{key: 3})
    assert rates(policy, strict=False, **{key: 3}) == [0.25, 0.5]


@pytest.mark.parametrize("lr", [-0.1, float("nan"), float("inf"), "fast"])
def test_a_learning_rate_that_is_none_is_refused(policy: Policy, lr: object) -> None:
    with pytest.raises(CannotContinue, match=f"sends clients lr={lr!r}; expected a number at least 0"):
        rates(policy, lr=lr)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"decay-mode": "constant"}, "decay-mode without decay-rate; send both, or neither"),
        ({"decay-mode": "cumulative"}, "decay-mode without decay-rate; send both, or neither"),
        ({"decay-mode": "constantly", "decay-rate": 0.5}, "decay-mode='constantly'; expected constant or cumulative"),
        (
            {"decay-mode": "constant", "decay-rate": -3.0},
            "decay-rate=-3.0; expected a number more than 0 and at most 1",
        ),
        ({"proximal-mu": float("nan")}, "proximal-mu=nan; expected a number at least 0"),
        ({"decay-rate": 0.5}, "decay-rate without server-accuracy, .* set needs_server_accuracy = True in its class"),
    ],
)
def test_a_decay_without_what_decides_it_is_refused(
    policy: Policy, config: dict[str, Any], told: str, strict: bool
) -> None:
    with pytest.raises(CannotContinue, match=f"sends clients {told}"):
        rates(policy, strict=strict, **config)


@pytest.mark.parametrize("record", [ConfigRecord({"lr": 1.0}), MetricRecord({"lr": 1.0}), ArrayRecord()])
def test_a_record_that_nothing_reads_is_refused(policy: Policy, record: Any) -> None:
    with pytest.raises(CannotContinue, match="sends clients a record 'more', which nothing reads"):
        rates(policy, more={"more": record})
    assert rates(policy, strict=False, more={"more": record}) == [0.25, 0.5]


def test_a_key_that_evaluation_does_not_read_is_refused(policy: Policy) -> None:
    assert rates(policy, to="evaluate", **{"server-round": 1}) == []
    with pytest.raises(CannotContinue, match=r"lr=0\.1, which nothing reads; clients read server-round: "):
        rates(policy, to="evaluate", lr=0.1)
