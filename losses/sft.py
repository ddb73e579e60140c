"""Supervised fine-tuning on the chosen responses."""

from torch import Tensor

from losses.logps import Logps


def sft(policy: Logps, reference: Logps | None = None) -> Tensor:
    """-(log-probability of the chosen response), in nats, shape (B,). The reference is not used."""
    return -policy.chosen


# The trainer reads this: it need not compute rejected responses or the reference.
sft.supervised = True  # type: ignore[attr-defined]
