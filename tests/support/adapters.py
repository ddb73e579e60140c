"""Policies with an adapter, and what tests compare of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from fed.config.groups import LoraSettings, ModelSettings
from fed.model.arrays import model_tensors
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import Policy, pair_logps
from fed.model.references import weights_hash, with_reference
from support.policies import PAIRS


def load(
    r: int = 4,
    *,
    lora: dict[str, Any] | None = None,
    checkpointing: bool = False,
    device: torch.device | str = "cpu",
    **model: Any,
) -> Policy:
    torch.manual_seed(0)
    settings, place = LoraSettings(r=r, **(lora or {})), Placement(torch.device(device))
    return load_policy(ModelSettings(**model), place, activation_checkpointing=checkpointing, lora=settings)


@torch.no_grad()
def move(model: nn.Module) -> None:
    """Give the adapter random weights, as training would; the same on every device."""
    torch.manual_seed(2)
    for tensor in model_tensors(model).values():
        tensor.copy_(torch.empty(tensor.shape, dtype=tensor.dtype).normal_(std=0.3))


def logps(policy: Policy) -> list[Any]:
    return pair_logps(policy, PAIRS, batch_size=4)


def reference(policy: Policy, cache: Path | None = None) -> list[Any]:
    filled = with_reference(policy, PAIRS, batch_size=4, cache=cache, weights_hash=weights_hash(policy))
    return [example.reference for example in filled]


def reloaded(policy: Policy, folder: Path) -> Policy:
    """Return the same policy around the model that transformers loads from the folder."""
    attention = policy.model.config._attn_implementation
    return replace(policy, model=AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention).eval())
