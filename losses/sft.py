"""Supervised fine-tuning on the chosen responses."""

from torch import Tensor

from losses.logps import Logps


def sft(policy: Logps, reference: Logps | None = None) -> Tensor:
    """Negative summed log-probability of the chosen response, in nats, shape (B,). The reference is not used."""
    return -policy.chosen


# Read by the trainer: rejected responses and the reference need not be computed.
sft.supervised = True  # type: ignore[attr-defined]
