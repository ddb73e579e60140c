"""Rounds under `privacy=` by hand: three updates, their clipped forms, and the formula of epsilon."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from clients.privacy import privacy_mods
from fed.config.groups import PrivacySettings
from fed.grids.local import LocalGrid
from fed.model.arrays import to_record

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


def trained_by_first() -> dict[str, torch.Tensor]:
    return {name: SENT[name] + UPDATES[0][name] for name in SENT}


def sent_by_a_client(
    settings: PrivacySettings, sent: Any, trained: Any, config: Any = None, mods: Sequence[Mod] = ()
) -> list[Message]:
    """Return the reply of an app with the mods of these settings, others inside them, trained weights and metrics."""
    app = ClientApp(mods=[*privacy_mods(settings), *mods])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 17, "accuracy": 0.625, "train_loss": 0.3, "decay": 0.9})
        told = ConfigRecord({"words": "of mine"})
        return Message(RecordDict({"arrays": to_record(trained), "metrics": metrics, "own": told}), reply_to=message)

    LocalGrid(app, [])
    record = RecordDict({"arrays": to_record(sent), "config": ConfigRecord(config or {})})
    return [app(Message(record, 0, "train"), Context(0, 0, {"partition-id": 0}, RecordDict(), {}))]
