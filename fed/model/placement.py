"""The place of a model's weights: one device, several GPUs, or in parts on several processes."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map
from accelerate.utils import get_balanced_memory

from fed.distributed.ranks import ONE_PROCESS, Mesh
from fed.model.scorer import is_scorer


@dataclass(frozen=True)
class Placement:
    """The device and the processes that hold a model's weights.

    Without a device mesh each process holds all weights. With one, its ranks share them: each holds a part of every
    weight (FSDP), or its share of every layer if `tensor_parallel` is set.
    """

    device: torch.device  # "cuda" without a number stands for all GPUs
    mesh: Mesh = ONE_PROCESS
    tensor_parallel: bool = False
    cpu_offload: bool = False  # FSDP keeps the parts in main memory between uses


def move(model: Any, device: torch.device) -> torch.device:
    """Move a whole model to the device, or spread its layers over all GPUs if `device` stands for several.

    Returns:
        The device of the model's head, with its number.
    """
    if device != torch.device("cuda") or torch.cuda.device_count() < 2:
        model.to(device)
        return model.device  # type: ignore[no-any-return]
    whole = {"no_split_module_classes": model._no_split_modules}
    memory = get_balanced_memory(model, **whole)
    dispatch_model(model, infer_auto_device_map(model, max_memory=memory, **whole))
    head: torch.device = (model.score if is_scorer(model) else model.get_output_embeddings()).weight.device
    return head
