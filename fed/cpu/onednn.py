"""Linear layers whose float32 matrices oneDNN multiplies on a CPU, in place of torch's usual library.

Shapes: R rows, K inputs, N outputs.
"""

from collections.abc import Iterator
from types import MethodType
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D


def use_onednn(model: nn.Module) -> None:
    """Make the linear layers of `model` multiply float32 matrices on the CPU by oneDNN; all else stays the same."""
    for layer in linear_layers(model):
        layer.forward = MethodType(_forward, layer)  # type: ignore[method-assign]


def use_torch(model: nn.Module) -> None:
    """Undo `use_onednn`."""
    for layer in linear_layers(model):
        vars(layer).pop("forward", None)


def uses_onednn(model: nn.Module) -> bool:
    """Return True if `use_onednn` was called on `model` or on a part of it."""
    return any(getattr(vars(layer).get("forward"), "__func__", None) is _forward for layer in linear_layers(model))


def onednn_linear(input: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
    """Compute `F.linear` and both its gradients by oneDNN; all tensors are float32 on the CPU."""
    result: Tensor = _OneDnnLinear.apply(input.reshape(-1, input.shape[-1]), weight_NK, bias_N)  # type: ignore[no-untyped-call]
    return result.view(*input.shape[:-1], weight_NK.shape[0])


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input_RK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(input_RK if ctx.needs_input_grad[1] else None, weight_NK)  # frozen weights need no input
        return onednn_product(input_RK, weight_NK, bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        input_RK, weight_NK = ctx.saved_tensors
        wants_input, wants_weight, wants_bias = ctx.needs_input_grad
        gradient_RN = gradient.contiguous()  # the gradient of a sum is one number, expanded
        by_input = onednn_product(gradient_RN, weight_NK.t()) if wants_input else None
        by_weight = _weight_gradient(gradient_RN, input_RK, weight_NK) if wants_weight else None
        return by_input, by_weight, gradient_RN.sum(0) if wants_bias else None


def _weight_gradient(gradient_RN: Tensor, input_RK: Tensor, weight_NK: Tensor) -> Tensor:
    """Compute the gradient in the memory layout of the weights, which saves autograd a copy."""
    if weight_NK.is_contiguous():
        return onednn_product(gradient_RN.t(), input_RK.t())
    return onednn_product(input_RK.t(), gradient_RN.t()).t()


def onednn_product(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute left right^T + bias by oneDNN, without gradient."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
    return result


def _forward(layer: nn.Linear | Conv1D, input: Tensor) -> Tensor:
    weight = layer.weight
    fits = weight.dtype == input.dtype == torch.float32 and weight.is_cpu and input.is_cpu and input.numel() > 0
    if not fits or torch.is_autocast_enabled("cpu"):
        usual: Tensor = type(layer).forward(layer, input)
        return usual
    return onednn_linear(input, as_NK(layer), layer.bias)


def linear_layers(model: nn.Module) -> Iterator[nn.Linear | Conv1D]:
    """Yield the layers that compute x W^T + b and nothing else, adapters and the layers below them included."""
    return (module for module in model.modules() if is_linear(module))


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Return True if the layer computes x W^T + b; a subclass may compute something else, as some routers do."""
    return type(module).forward in (nn.Linear.forward, Conv1D.forward)


def as_NK(layer: nn.Linear | Conv1D) -> Tensor:
    """Return the weights as `F.linear` takes them; GPT-2 stores them transposed."""
    return layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
