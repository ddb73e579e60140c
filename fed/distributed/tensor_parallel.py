"""One model over several processes that hold a part of every layer each (tensor parallelism) and see the same pairs.

The plan of transformers names the linear layers that are split, and how. Embeddings, norms and head are whole in every
process, and their gradients are the same in all of them, to the bit.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

DIMENSIONS = {"colwise": 0, "rowwise": 1}  # the split dimension of a weight (outputs, inputs)
SHARED = "replicated_with_grad_allreduce"  # a norm over parts of the heads, whole in every process
# Numbers of the configuration that must be multiples of the number of processes.
HEADS = ("num_attention_heads", "num_key_value_heads")


def problem(model: Any, processes: int) -> str | None:
    """Tell why so many processes cannot share the layers of a model, on the meta device or not; None: they can."""
    kind, plan = type(model).__name__, styles(model)
    if not plan:
        return f"transformers has no tensor-parallel plan for {kind}"
    odd = sorted({style for _, _, style in plan} - {*DIMENSIONS, SHARED})
    if odd:
        return f"the tensor-parallel plan of {kind} has styles that are not supported here ({', '.join(odd)})"
    text = model.config.get_text_config()
    for name in HEADS:
        heads = getattr(text, name, None)
        if heads is not None and heads % processes:
            return f"its {heads} {name} cannot be shared evenly by {processes} processes"
    for name, module, style in plan:
        layer: Any = getattr(module, "base_layer", module)
        if style in DIMENSIONS and type(layer) is not nn.Linear:
            return f"{name} is a {type(layer).__name__}"
        if style in DIMENSIONS:
            width = layer.weight.shape[DIMENSIONS[style]]
            if -(-width // processes) * (processes - 1) >= width:  # torch gives the first ones more
                return f"{name}, {width} wide, leaves nothing to the last of {processes} processes"
    return None


def styles(model: Any) -> list[tuple[str, nn.Module, str]]:
    """List name, module and style of all that the plan names, but for embeddings and head."""
    whole = (model.get_input_embeddings(), model.get_output_embeddings())
    plan = model.tp_plan or {}
    found = []
    for name, module in model.named_modules():
        style = plan.get(".".join("*" if part.isdigit() else part for part in name.split(".")))
        if style is not None and module not in whole:
            found.append((name, module, style))
    return found


def split(model: Any, mesh: DeviceMesh) -> None:
    """Split the layers of `model`, in place, over the processes of `mesh`; it may be on the meta device.

    An adapter must be added before: of its two matrices the one that touches the split dimension is split too.
    """
    for _, module, style in styles(model):
        if style not in DIMENSIONS:
            continue
        layers = [module]
        if hasattr(module, "base_layer"):
            adapter = module.lora_B if style == "colwise" else module.lora_A
            layers = [module.base_layer, *adapter.values()]  # type: ignore[operator,list-item]
        for layer in layers:
            for name, weight in list(layer.named_parameters(recurse=False)):
                if style == "rowwise" and name == "bias":  # it is added once, to the sum
                    continue
                part = distribute_tensor(weight, mesh, [Shard(DIMENSIONS[style])], src_data_rank=None)
                layer.register_parameter(name, nn.Parameter(part, requires_grad=weight.requires_grad))
            layer.forward = MethodType(_colwise if style == "colwise" else _rowwise, layer)


def sum_shared_gradients(model: Any, mesh: DeviceMesh) -> None:
    """Sum the gradients of norms that see only parts of the heads over the processes, once the weights are there."""

    def summed(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=mesh.get_group())
        return gradient

    for _, module, style in styles(model):
        if style == SHARED:
            for weight in module.parameters(recurse=False):
                if weight.requires_grad:  # below an adapter it has no gradient
                    weight.register_hook(summed)  # type: ignore[no-untyped-call]


def difference(model: Any, small: Callable[[Any], Any], mesh: DeviceMesh) -> float:
    """Measure what the split changes in a small model of the same kind, `small(model)`.

    Its hidden states and the gradients of whole weights are compared. Return the largest difference, relative to the
    largest value of its tensor. All processes call it.
    """
    found = []
    for share in (False, True):
        specimen = small(model).to(mesh.device_type)
        if share:
            split(specimen, mesh)
            sum_shared_gradients(specimen, mesh)
        ids = torch.arange(8, device=mesh.device_type)[None] % specimen.get_input_embeddings().num_embeddings
        hidden = specimen.base_model(input_ids=ids, use_cache=False)[0]
        direction = torch.linspace(-1, 1, hidden.numel(), device=mesh.device_type).view_as(hidden)
        (hidden * direction).sum().backward()
        whole = {
            name: p for name, p in specimen.named_parameters() if not isinstance(p, DTensor) and p.grad is not None
        }
        found.append({"hidden": hidden.detach()} | {name: p.grad for name, p in whole.items()})
    before, after = found
    return max(float((after[name] - before[name]).abs().max() / before[name].abs().max()) for name in after)


def _colwise(layer: nn.Linear, x: Tensor) -> Tensor:
    entered: Tensor = _Enter.apply(x, _group(layer.weight))  # type: ignore[no-untyped-call]
    return F.linear(entered, _part(layer.weight), None if layer.bias is None else _part(layer.bias))


def _rowwise(layer: nn.Linear, x: Tensor) -> Tensor:
    left: Tensor = _Leave.apply(F.linear(x, _part(layer.weight)), _group(layer.weight))  # type: ignore[no-untyped-call]
    return left if layer.bias is None else left + layer.bias.to(left.dtype)


class _Enter(torch.autograd.Function):
    """Forward, the input itself; backward, the sum of the gradients of all processes, each from its part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _Leave(torch.autograd.Function):
    """Forward, the sum of the parts of all processes; backward, the gradient itself."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _part(weight: Tensor) -> Tensor:
    """Return this process's part of a weight, with gradient."""
    assert isinstance(weight, DTensor)
    return weight.to_local()


def _group(weight: Tensor) -> dist.ProcessGroup:
    assert isinstance(weight, DTensor)
    return weight.device_mesh.get_group()
