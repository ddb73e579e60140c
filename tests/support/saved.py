"""Saving and loading a value, and an equality that looks at every bit."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fed.checkpoints import serialize


def there_and_back(nested: Any, folder: Path) -> Any:
    serialize.save(nested, folder / "saved")
    return serialize.load(folder / "saved")


def same(one: Any, other: Any) -> bool:
    """Return True if both are equal in type, in order and in every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, float):
        return repr(one) == repr(other)  # NaN is NaN here, and -0.0 is not 0.0
    return bool(one == other)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
