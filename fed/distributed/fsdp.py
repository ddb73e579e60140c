"""One model split over several processes by FSDP2: each holds a part of every weight, and all compute together."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

from fed.distributed.ranks import Mesh


def shard(
    model: nn.Module, mesh: Mesh, *, block_name: str | None, compute_dtype: torch.dtype | None, cpu_offload: bool
) -> "Root":
    """Split every weight of `model`, in place, over the ranks of this group.

    Args:
        model: The model, with or without memory for its weights.
        mesh: An arrangement of ranks that has a device mesh.
        block_name: Class of the modules whose weights are gathered together; None: the longest list of like modules.
        compute_dtype: The dtype in which weights are gathered; None: the one they are stored in.
        cpu_offload: Keep weights, gradients and optimizer state in main memory between uses.
    """
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if cpu_offload else OffloadPolicy()
    # Rotary tables enter a block in float32 and stay so.
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    how: Any = {"mesh": mesh.device_mesh, "mp_policy": precision, "offload_policy": offload}
    for block in blocks(model, block_name):
        fully_shard(block, **how)
    root = Root(model)
    fully_shard(root, **how)
    return root


def blocks(model: nn.Module, name: str | None) -> list[nn.Module]:
    """List the modules of class `name`; without a name, the longest list of modules of one class."""
    if name is not None:
        return [module for module in model.modules() if type(module).__name__ == name]
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    alike = [modules for modules in lists if len({type(module) for module in modules}) == 1]
    return max(alike, key=len, default=[])


class Root(nn.Module):
    """The module that FSDP takes for the whole model: whatever reads the model's weights runs in its forward pass.

    So single parts of the model, such as the head's weight, can be used. The model keeps its class and its names.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        """Return the tensors that `compute` returns."""
        return compute()


def run(root: nn.Module, compute: Callable[[], Any]) -> Any:
    """Return the result of `compute`, which runs while weights can be gathered.

    Without gradients the weights are split again at once: FSDP would keep the root's whole, and so miss what is
    written into the parts.
    """
    result = root(compute)
    if not torch.is_grad_enabled():
        assert isinstance(root, FSDPModule)
        root.reshard()
    return result
