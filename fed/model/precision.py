"""The dtypes that a model's weights are kept in and computed in."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fed.config.groups import ModelSettings
from fed.distributed.shards import local

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def weights_dtype(settings: ModelSettings) -> torch.dtype:
    """Return the dtype that weights are kept in.

    Raises:
        ValueError: If the dtype is unknown, or the reference would have another one.
    """
    dtype = _dtype("model.policy_dtype", settings.policy_dtype)
    if settings.reference_dtype not in (None, settings.policy_dtype):
        raise ValueError(
            f"model.reference_dtype={settings.reference_dtype} differs from policy_dtype={settings.policy_dtype}: "
            "round 0 would measure rounding noise instead of ties; leave it null"
        )
    return dtype


def compute_dtype(settings: ModelSettings) -> torch.dtype | None:
    """Return the dtype that forward passes compute in; None: that of the weights.

    Raises:
        ValueError: If the dtype is unknown, or has more bits than the weights.
    """
    if settings.fsdp_policy_mp in (None, settings.policy_dtype):
        return None
    dtype = _dtype("model.fsdp_policy_mp", settings.fsdp_policy_mp)
    if dtype == torch.float32:
        raise ValueError(
            f"precision=float32 (or model.fsdp_policy_mp=float32) is not less than policy_dtype="
            f"{settings.policy_dtype}; set policy_dtype=float32, or leave precision out"
        )
    return dtype


@torch.no_grad()
def vanishing(parameters: Iterable[Tensor], update: float) -> float:
    """Return the share of weights that `update` leaves as they are, because their dtype has no number so near.

    Adaptive optimizers move a weight by about the learning rate. bfloat16 keeps 8 bits: a weight of 0.02 stays where it
    is unless it moves by 3e-5.
    """
    kept = total = 0
    for parameter in parameters:
        weights = local(parameter.detach())
        kept += int(((weights.float() + update).to(weights.dtype) == weights).sum())
        total += weights.numel()
    return kept / max(total, 1)


def _dtype(key: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"{key}={name} is not a dtype; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]
