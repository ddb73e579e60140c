"""The loss of a reward model, whose scores stand where policies have log-probs."""

import torch.nn.functional as F
from torch import Tensor

from losses.logps import Logps


def reward(policy: Logps, reference: Logps | None = None) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected), shape (B,): Eq. 1 of arXiv 2203.02155 for one pair. No reference is used.

    Raises:
        ValueError: If there are no rejected responses.
    """
    if policy.rejected is None:
        raise ValueError("a reward model learns from pairs; this batch holds chosen responses only")
    return -F.logsigmoid(policy.chosen - policy.rejected)


# Read when the model is loaded: it gets a value head, and scores are what the loss receives.
reward.scores = True  # type: ignore[attr-defined]
