"""Simulated failures of clients. Every draw depends on seed, client and round only."""

import math
from dataclasses import dataclass

import torch
from flwr.app import Message

from fed.config.groups import FaultSettings
from fed.errors import Failed
from fed.grids.replies import Sent
from fed.model.arrays import to_record, to_tensors
from fed.seeding import generator


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
