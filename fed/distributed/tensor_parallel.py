"""One model over several processes, each with a part of every layer (tensor parallelism), all at the same pairs.

Transformers' own plan says which linear layers are split and how; embeddings, norms and head are whole in every
process, and their gradients are then the same in all of them, to the bit.
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

DIMENSIONS = {"colwise": 0, "rowwise": 1}  # of a weight (outputs, inputs) that is split
SHARED = "replicated_with_grad_allreduce"  # a norm over parts of the heads, whole in every process
# Of the configuration, to be multiples of the number of processes.
HEADS = ("num_attention_heads", "num_key_value_heads")


class _Enter(torch.autograd.Function):
    """The same forward; backward, the sum over the processes, each of which has used it for its part."""

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
    """Forward, the sum of the processes' parts; backward the same."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def _part(weight: Tensor) -> Tensor:
    """This process's part, with gradient."""
    assert isinstance(weight, DTensor)
    return weight.to_local()


def _group(weight: Tensor) -> dist.ProcessGroup:
    assert isinstance(weight, DTensor)
    return weight.device_mesh.get_group()


def _colwise(layer: nn.Linear, x: Tensor) -> Tensor:
    entered: Tensor = _Enter.apply(x, _group(layer.weight))  # type: ignore[no-untyped-call]
    return F.linear(entered, _part(layer.weight), None if layer.bias is None else _part(layer.bias))


def _rowwise(layer: nn.Linear, x: Tensor) -> Tensor:
    left: Tensor = _Leave.apply(F.linear(x, _part(layer.weight)), _group(layer.weight))  # type: ignore[no-untyped-call]
    return left if layer.bias is None else left + layer.bias.to(left.dtype)


FORWARD = {"colwise": _colwise, "rowwise": _rowwise}


def problem(model: Any, processes: int) -> str | None:
    """Why these processes cannot share the layers of such a model, on the meta device or not; None: they can."""
    kind, plan = type(model).__name__, styles(model)
    if not plan:
        return f"transformers has no tensor-parallel plan for {kind}"
    odd = sorted({style for _, _, style in plan} - {*DIMENSIONS, SHARED})
    if odd:
        return f"the tensor-parallel plan of {kind} has parts that are not done here ({', '.join(odd)})"
    text = model.config.get_text_config()
    for name in HEADS:
        heads = getattr(text, name, None)
        if heads is not None and heads % processes:
            return f"its {heads} {name} cannot be shared evenly by {processes} processes"
    for name, module, style in plan:
        layer: Any = getattr(module, "base_layer", module)
        if style in FORWARD and type(layer) is not nn.Linear:
            return f"{name} is a {type(layer).__name__}"
        if style in FORWARD:
            width = layer.weight.shape[DIMENSIONS[style]]
            if -(-width // processes) * (processes - 1) >= width:  # torch gives the first ones more
                return f"{name}, {width} wide, leaves nothing to the last of {processes} processes"
    return None


def styles(model: Any) -> list[tuple[str, nn.Module, str]]:
    """Name, module and style of what the plan names, but for embeddings and head."""
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

    An adapter must be there before: of its two matrices the one that touches the split dimension is split too.
    """
    for _, module, style in styles(model):
        if style not in FORWARD:
            continue
        layers = [module]
        if hasattr(module, "base_layer"):
            adapter = module.lora_B if style == "colwise" else module.lora_A
            layers = [module.base_layer, *adapter.values()]  # type: ignore[operator,list-item]
        for layer in layers:
            for name, weight in list(layer.named_parameters(recurse=False)):
                if style == "rowwise" and name == "bias":  # added once, to the sum
                    continue
                part = distribute_tensor(weight, mesh, [Shard(DIMENSIONS[style])], src_data_rank=None)
                layer.register_parameter(name, nn.Parameter(part, requires_grad=weight.requires_grad))
            layer.forward = MethodType(FORWARD[style], layer)


def sum_shared_gradients(model: Any, mesh: DeviceMesh) -> None:
    """Once the weights are there: gradients of norms over parts of the heads become those over all heads."""

    def summed(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=mesh.get_group())
        return gradient

    for _, module, style in styles(model):
        if style == SHARED:
            for weight in module.parameters(recurse=False):
                weight.register_hook(summed)  # type: ignore[no-untyped-call]


def difference(model: Any, small: Callable[[Any], Any], mesh: DeviceMesh) -> float:
    """What the split changes in a small model of the same kind: its hidden states, and gradients of whole weights.

    The largest difference, relative to the largest value. All processes call it.
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
