"""Clients that fail: a simulation makes some fail, and `check_reply` finds the replies that no aggregate can use.

Every draw depends on seed, client and round only.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from flwr.app import Message
from torch import Tensor

from fed.config.groups import FaultSettings
from fed.distributed.ranks import ALONE, Ranks
from fed.errors import Failed
from fed.model.arrays import to_record, to_tensors
from fed.seeding import generator

Sent = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Faults:
    """Simulated failures of clients.

    Args:
        settings: The rates of each kind of failure.
        client_timeout: Seconds after which a client is too late; None: nobody is.
        seed: The seed of the draws.
    """

    settings: FaultSettings
    client_timeout: float | None = None
    seed: int = 0

    def before(self, client_id: int, server_round: int) -> None:
        """Refuse a client that drops out or comes too late in this round.

        Raises:
            Failed: With the reason, if it does.
        """
        settings = self.settings
        drops, is_late, delay = generator(self.seed, "faults", client_id, server_round).random(3)
        if drops < settings.dropout_rate:
            raise Failed("simulated dropout")
        seconds = -math.log1p(-delay) * settings.straggler_seconds
        if is_late < settings.straggler_rate and self.client_timeout is not None and seconds > self.client_timeout:
            raise Failed(f"simulated delay of {seconds:.0f} s, more than client_timeout={self.client_timeout:g}")

    def after(self, client_id: int, server_round: int, sent: Sent, reply: Message) -> None:
        """Change a reply if its client is Byzantine in every round, or sends NaN in this one."""
        settings = self.settings
        spoils = generator(self.seed, "spoiled", client_id, server_round).random() < settings.nan_rate
        for key, record in reply.content.array_records.items():
            tensors = to_tensors(record)
            if client_id < settings.byzantine_clients:
                for name, tensor in tensors.items():
                    received = sent.get(key, {}).get(name)
                    if received is None or received.shape != tensor.shape:  # it has no opposite
                        continue
                    tensors[name] = received - settings.byzantine_scale * (tensor - received)
            if spoils:
                tensors = {name: torch.full_like(tensor, math.nan) for name, tensor in tensors.items()}
            reply.content[key] = to_record(tensors)


def arrays(message: Message) -> Sent:
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
    answered = arrays(reply)
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
        if tensor.numel() and not all(extreme.isfinite() for extreme in tensor.aminmax()):  # NaN is both
            return f"its {name} is not finite"
    return None
