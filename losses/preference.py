"""Preference losses: policy and reference log-probs in, one loss per pair out. Shapes: B pairs."""

import torch.nn.functional as F
from torch import Tensor

from losses.logps import Logps


def dpo(
    policy: Logps,
    reference: Logps | None,
    *,
    beta: float,
    label_smoothing: float = 0.0,
    reference_free: bool = False,
) -> Tensor:
    """-(1-eps) log sigmoid(beta h) - eps log sigmoid(-beta h), shape (B,).

    h is `log_ratio_margin`. eps = `label_smoothing` = 0 is DPO (Eq. 7 of arXiv 2305.18290); eps > 0, the chance that a
    label is flipped, is conservative DPO (Eq. 3 of https://ericmitchell.ai/cdpo.pdf). `reference_free` takes the
    reference to be uniform, so that h is the policy's own margin.

    Raises:
        ValueError: If there are no rejected responses, or no reference although one is needed.
    """
    logits = beta * log_ratio_margin(policy, None if reference_free else _given(reference))
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def ipo(policy: Logps, reference: Logps | None, *, beta: float) -> Tensor:
    """(h_mean - 1 / (2 beta))^2, shape (B,): Eq. 17 of arXiv 2310.12036, where beta is called tau.

    h_mean uses mean log-probs per token, so that long responses do not decide.

    Raises:
        ValueError: If there are no rejected responses, or no reference.
    """
    h_mean = log_ratio_margin(policy.per_token(), _given(reference).per_token())
    return (h_mean - 1 / (2 * beta)) ** 2


def log_ratio_margin(policy: Logps, reference: Logps | None) -> Tensor:
    """h = [policy chosen - policy rejected] - [reference chosen - reference rejected], shape (B,), in nats.

    Without a reference, or with a uniform one, the second bracket is 0.

    Raises:
        ValueError: If there are no rejected responses.
    """
    if policy.rejected is None:
        raise ValueError("a preference loss needs rejected responses; this batch holds chosen ones only")
    h = policy.chosen - policy.rejected
    if reference is not None:
        assert reference.rejected is not None
        h = h - (reference.chosen - reference.rejected)
    return h


def _given(reference: Logps | None) -> Logps:
    if reference is None:
        raise ValueError("this loss compares with a reference; fill the examples' reference column first")
    return reference
