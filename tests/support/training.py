"""One client's training in tests."""

import copy

import torch

from clients.settings import LocalSettings, RoundSettings
from clients.state import ClientState
from clients.trainer import LocalTrainer
from fed.data.examples import Example
from fed.model.policy import Policy
from fed.model.references import with_reference
from fed.tracking.log import Log
from support.federations import dpo_loss
from support.local_settings import local_settings


def settings(**changes) -> LocalSettings:
    quick = {"loss": dpo_loss, "optimizer": "AdamW", "lr": 1e-2, "warmup_steps": 0, "eval_batch_size": 8}
    return local_settings(**quick | changes)


class Updates(Log):
    """A log that collects the updates of a client."""

    def __init__(self) -> None:
        self.told = []

    def update(self, client_id, split, metrics, *, step):
        self.told.append((split, metrics, step))


def referenced(policy: Policy, pairs: list[Example]) -> list[Example]:
    return with_reference(policy, pairs, batch_size=8, cache=None, weights_hash="")


def train(policy: Policy, pairs, state=None, this_round=None, held_out=(), client_id=0, **changes):
    """Return the metrics, and the (split, tags, step) that were reported of each update."""
    log = Updates()
    metrics = LocalTrainer(policy, settings(**changes)).train(
        client_id, pairs, held_out, state or ClientState(), this_round or RoundSettings(), log
    )
    return metrics, log.told


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def copied(policy: Policy) -> Policy:
    return Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.device)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
