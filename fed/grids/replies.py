"""Replies of clients: the check that an aggregate can use them."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from flwr.app import Message, MessageType, RecordDict
from torch import Tensor

from fed.config.meaning import Limits
from fed.distributed.ranks import ALONE, Ranks
from fed.errors import Failed
from fed.model.arrays import not_finite, to_tensors

FINITE = Limits()  # infinity and NaN are out of every range
SHARE, COUNT = Limits(at_least=0, at_most=1), Limits(at_least=0, at_most=2**53)
PAIRS = Limits(at_least=1, at_most=2**53)  # a float64 holds it
# The metrics that clients answer with, and the numbers that these can be.
RANGES: dict[str, dict[str, Limits]] = {
    MessageType.TRAIN: {
        "num-examples": PAIRS,
        "pairs": COUNT,
        "train_loss": FINITE,
        "accuracy": SHARE,
        "decay": SHARE,
        "decay_next": SHARE,
    },
    MessageType.EVALUATE: {"num-examples": PAIRS, "accuracy": SHARE, "margin": FINITE, "loss": FINITE},
}
OF_PAIRS = ("accuracy", "margin")  # metrics that single responses do not have
# The arrays of a message to a client: by key of the record, and by name.
Sent = Mapping[str, Mapping[str, Tensor]]


def arrays_of(message: Message) -> Sent:
    """Return the arrays of a message, by key of the record and name; mods of the client may replace them later."""
    return {key: to_tensors(record) for key, record in message.content.array_records.items()}


@dataclass(frozen=True)
class Expected:
    """The records that a reply of a client elsewhere holds, and no others.

    Args:
        private: Clients send `num-examples` 1 and no other metric, as `privacy=` makes them.
        added: Names of the metrics that clients' mods add to a reply to "train".
        raises_loss: The strategy raises clients' losses to a power, so none may be below 0.
        supervised: The loss reads chosen responses only, so clients whose pairs have no others measure no accuracy.
    """

    private: bool = False
    added: tuple[str, ...] = ()
    raises_loss: bool = False
    supervised: bool = False

    def check(self, kind: str, keys: Collection[str], content: RecordDict) -> None:
        """Check the records of a reply, before anything reads them.

        Args:
            kind: "train" or "evaluate".
            keys: Of the arrays in the message to the client.
            content: The client's answer.

        Raises:
            Failed: Naming what is missing, too much, or out of range.
        """
        arrays = keys if kind == MessageType.TRAIN else ()
        if odd := sorted(content.array_records.keys() ^ set(arrays)):
            raise Failed(f"its reply {'lacks' if odd[0] in arrays else 'has'} the arrays {odd[0]}")
        if content.config_records or len(content.metric_records) != 1:
            raise Failed("its reply has other records than its arrays and one record of metrics")
        metrics = next(iter(content.metric_records.values()))
        ranges = self._ranges(kind)
        added = self.added if kind == MessageType.TRAIN and not self.private else ()
        may_lack = OF_PAIRS if self.supervised else ()
        for name in sorted(metrics.keys() ^ {*ranges, *added}):
            if name in may_lack and name not in metrics:
                continue
            if name in metrics:
                raise Failed(
                    f"its reply has the metric {name}, which nobody expects; those that mods add stand in "
                    "client_metrics"
                )
            raise Failed(f"its reply lacks the metric {name}")
        for name, limits in ranges.items():
            value = metrics.get(name, 0)  # 0: one that it may lack
            if isinstance(value, list) or not limits.hold(value):
                raise Failed(f"its {name} is {str(value)[:40]}; expected a number {limits.text}".rstrip())

    def _ranges(self, kind: str) -> Mapping[str, Limits]:
        """Return the metrics that a reply has, with the numbers that these can be."""
        if self.private:
            return {"num-examples": Limits(at_least=1, at_most=1)}
        if self.raises_loss and kind == MessageType.TRAIN:
            return {**RANGES[kind], "train_loss": Limits(at_least=0)}
        return RANGES[kind]


def check_reply(sent: Sent, reply: Message, own: Ranks = ALONE) -> None:
    """Refuse a reply to "train" that no aggregate can use.

    Args:
        sent: The arrays of the message to the client.
        reply: The client's answer.
        own: The processes that train the client, each with its part of the arrays.

    Raises:
        Failed: Naming what makes it useless.
    """
    if (reason := own.any_of(_problem(sent, reply))) is not None:
        raise Failed(reason)


def _problem(sent: Sent, reply: Message) -> str | None:
    """Return why no aggregate can use the reply; None: it can be used."""
    answered = arrays_of(reply)
    for key, expected in sent.items():
        if not expected:
            continue
        if key not in answered:
            return f"its reply has no arrays under {key}"
        if problem := _problem_of_arrays(expected, answered[key]):
            return problem
    for metrics in reply.content.metric_records.values():
        for name, value in metrics.items():
            if not all(map(math.isfinite, value if isinstance(value, list) else [value])):
                return f"its {name} is {value}"
    return None


@torch.no_grad()
def _problem_of_arrays(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str | None:
    if expected.keys() != found.keys():
        return f"its arrays have other names: {sorted(expected.keys() ^ found.keys())[0]} is on one side only"
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            return f"its {name} has shape {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
    odd = not_finite(found)
    return None if odd is None else f"its {odd} is not finite"
