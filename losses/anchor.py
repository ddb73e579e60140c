"""The anchor term: keeps a client's log-probs near those of the global model it received."""

from torch import Tensor

from losses.logps import Logps


def anchor(policy: Logps, received: Logps) -> Tensor:
    """(policy chosen - received chosen)^2 + (policy rejected - received rejected)^2, shape (B,).

    The mean over pairs is the MSE term of FeDPO's objective. `received` are the log-probs of the weights at the
    beginning of the round: constants without gradient. Pass `per_token()` of both for `anchor_norm=token`. Without
    rejected responses only the chosen ones count.
    """
    change = (policy.chosen - received.chosen) ** 2
    if policy.rejected is not None:
        assert received.rejected is not None
        change = change + (policy.rejected - received.rejected) ** 2
    return change
