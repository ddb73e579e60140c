"""Replies of clients: the check that an aggregate can use them."""

import math
from collections.abc import Mapping

import torch
from flwr.app import Message
from torch import Tensor

from fed.distributed.ranks import ALONE, Ranks
from fed.errors import Failed
from fed.model.arrays import not_finite, to_tensors

# The arrays of a message to a client: by key of the record, and by name.
Sent = Mapping[str, Mapping[str, Tensor]]


def arrays_of(message: Message) -> Sent:
    """Return the arrays of a message, by key of the record and name; mods of the client may replace them later."""
    return {key: to_tensors(record) for key, record in message.content.array_records.items()}


def check_reply(sent: Sent, reply: Message, own: Ranks = ALONE) -> None:
    """Refuse a reply to "train" that no aggregate can use.

    Args:
        sent: The arrays of the message to the client.
        reply: The client's answer.
        own: The processes that train the client, each with its part of the arrays.

    Raises:
        Failed: With the reason, if the reply is such.
    """
    reasons = [reason for reason in own.gather(_problem(sent, reply)) if reason is not None]
    if reasons:
        raise Failed(reasons[0])


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
    name_of_odd = not_finite(found)
    return None if name_of_odd is None else f"its {name_of_odd} is not finite"
