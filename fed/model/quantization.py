"""Linear layers whose frozen weights are kept in 4 bits, as in QLoRA (arXiv 2305.14314), or in 8.

Activations are not rounded, as LLM.int8 would do it: the log-probs of a pair would then depend on the pairs beside it.
Shapes: N outputs, K inputs.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from fed.cpu.onednn import as_NK, is_linear
from fed.cpu.runtime import return_freed_memory

BLOCK = 64  # weights that share a scale in nf4, as in the paper
INT8_MOST = 127
TINY = torch.finfo(torch.float32).tiny  # in place of the scale of a row of zeros


class PackedLinear(nn.Linear):
    """A linear layer that unpacks its weights each time it is used, in both passes; no gradient reaches them.

    It is an `nn.Linear` because peft chooses the kind of adapter by that.

    Args:
        weight_NK: The weights.
        bias_N: The bias; it is not packed.
        kind: `nf4`: blocks of 64 weights with a scale of 32 bits, 4.5 bits a weight; `int8`: rows with a scale each.
        transposed: The unpacked model stores K x N.
    """

    packed: Tensor
    scales: Tensor
    bias: Any

    def __init__(self, weight_NK: Tensor, bias_N: nn.Parameter | None, kind: str, *, transposed: bool) -> None:
        nn.Module.__init__(self)  # that of nn.Linear would make weights
        self.out_features, self.in_features = weight_NK.shape
        self.kind, self.dtype, self.transposed, self.bias = kind, weight_NK.dtype, transposed, bias_N
        if kind == "nf4":
            from bitsandbytes.functional import quantize_4bit

            packed, state = quantize_4bit(weight_NK.contiguous(), blocksize=BLOCK, quant_type="nf4")
            scales = state.absmax
        else:
            scales = weight_NK.float().abs().amax(1) / INT8_MOST
            packed = (weight_NK / scales.clamp(min=TINY)[:, None]).round().to(torch.int8)
        self.register_buffer("packed", packed)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The unpacked weights, (N, K), in the dtype that they had before."""
        if self.kind == "int8":
            return (self.packed * self.scales[:, None]).to(self.dtype)
        from bitsandbytes.functional import QuantState, dequantize_4bit

        shape = torch.Size((self.out_features, self.in_features))
        how = {"blocksize": BLOCK, "quant_type": "nf4", "dtype": self.dtype}
        state = QuantState(self.scales, shape, **how)  # type: ignore[no-untyped-call]
        return dequantize_4bit(self.packed, state)

    def forward(self, input: Tensor) -> Tensor:
        """Compute x W^T + b, in autocast's dtype inside it."""
        device = input.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else input.dtype
        product: Tensor = _Product.apply(input.to(dtype), self)  # type: ignore[no-untyped-call]
        return product if self.bias is None else product + self.bias.to(dtype)


class _Product(torch.autograd.Function):
    """The product x W^T; in the backward pass W is unpacked again, so that it is not kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        return linear(input, layer.weight.to(input.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.weight.to(gradient.dtype), None


def quantize(model: nn.Module, names: Iterable[str], kind: str) -> None:
    """Pack the weights of linear layers in place.

    Args:
        model: The model.
        names: The dotted names of its layers that may be packed; a layer that is more than linear stays.
        kind: `nf4` or `int8`.

    Raises:
        ValueError: If bitsandbytes, which packs `nf4`, is not installed, or there is no such layer.
    """
    if kind == "nf4":
        try:
            import bitsandbytes  # noqa: F401
        except ImportError as error:
            raise ValueError(
                "model.quantization=nf4 needs bitsandbytes: pip install -c constraints.txt -e '.[quant]'; int8 does not"
            ) from error
    plain = [name for name in names if is_linear(model.get_submodule(name))]
    if not plain:
        raise ValueError(f"model.quantization={kind}: {type(model).__name__} has no linear layer to pack; leave it out")
    for name in plain:  # one by one: the unpacked weights of each are freed before the next
        layer: Any = model.get_submodule(name)
        new = PackedLinear(as_NK(layer).detach(), layer.bias, kind, transposed=isinstance(layer, Conv1D))
        model.set_submodule(name, new)
    del layer
    return_freed_memory()  # kept, the memory of the unpacked weights would stay with this process


def packed_layers(model: nn.Module) -> Iterator[tuple[str, PackedLinear]]:
    """Yield the packed layers of the model with their names."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, PackedLinear))


def unpacked_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the model's state with the weights that packed layers compute with, as a model that is not packed has it.

    Args:
        model: The model.
        state: Its state, under its own names.
    """
    found = dict(state)
    for name, layer in packed_layers(model):
        del found[f"{name}.packed"], found[f"{name}.scales"]
        found[f"{name}.weight"] = (layer.weight.t() if layer.transposed else layer.weight).contiguous()
    return found


def weight_count(model: Any) -> int:
    """Return the number of weights of a transformers model, packed ones included."""
    packed = sum(layer.in_features * layer.out_features for _, layer in packed_layers(model))
    return int(model.num_parameters()) + packed
