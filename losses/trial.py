"""A trial of the user's loss on made-up pairs."""

import functools
from typing import Any

import torch

from losses.logps import Logps

# Log-probs of five pairs under policy and reference: chosen, rejected, and their tokens.
MADE_UP = (
    (
        (-3.0, -7.0, -5.0, -9.0, -4.0),
        (-4.0, -5.0, -6.0, -2.0, -8.0),
        (2.0, 3.0, 1.0, 4.0, 2.0),
        (2.0, 4.0, 3.0, 1.0, 5.0),
    ),
    (
        (-3.5, -6.0, -5.5, -8.0, -4.5),
        (-4.5, -4.0, -6.0, -3.0, -9.0),
        (2.0, 3.0, 1.0, 4.0, 2.0),
        (2.0, 4.0, 3.0, 1.0, 5.0),
    ),
)


def stands_alone(loss: functools.partial[Any]) -> bool:
    """Return whether the loss of a pair does not depend on the pairs beside it.

    Raises:
        ValueError: If the loss does not return one number per pair.
    """
    logps = [Logps(*(torch.tensor(values) for values in columns)) for columns in MADE_UP]
    pairs = len(logps[0].chosen)
    found = loss(*logps)
    if not isinstance(found, torch.Tensor) or found.shape != (pairs,):
        got = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(
            f"loss: {loss.func.__name__} gives {got} for {pairs} pairs; expected a tensor of shape ({pairs},)"
        )
    try:
        apart = [loss(*(column.part(part) for column in logps)) for part in (slice(0, 1), slice(1, 3), slice(3, pairs))]
        return torch.allclose(found, torch.cat([losses.reshape(-1) for losses in apart]), rtol=1e-5, equal_nan=True)
    except Exception:  # whatever the user's loss raises for few pairs
        return False
