"""Weights for a model that was made without memory: each process reads or receives only its part."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from fed.distributed.ranks import Ranks
from fed.distributed.shards import distributed, index

# Returns a stretch of each dimension of a weight, given all its names (tied weights have several) and a tensor like it.
Read = Callable[[Sequence[str], Tensor, tuple[slice, ...]], Tensor]


@torch.no_grad()
def fill(model: nn.Module, device: torch.device, read: Read, *, buffers_on: torch.device | None = None) -> None:
    """Give a model on the meta device, split or whole, its memory and its values.

    Weights lie on `device`. Buffers, such as rotary tables, lie on `buffers_on`, where computation takes place, or also
    on `device` if that is None.
    """
    values = {}
    for names, weight in _with_names(model):
        part = read(names, weight, index(weight)).to(device, weight.dtype).clone(memory_format=torch.contiguous_format)
        whole = distributed(part, weight) if isinstance(weight, DTensor) else part
        parameter = nn.Parameter(whole, requires_grad=weight.requires_grad)
        values.update(dict.fromkeys(names, parameter))
    model.load_state_dict(values, strict=False, assign=True)
    buffers = dict(model.named_buffers())
    for name in sorted(buffers.keys() & model.state_dict().keys()):
        buffers[name].copy_(read([name], buffers[name], index(buffers[name])))
    for name, buffer in buffers.items():
        module = model.get_submodule(name.rpartition(".")[0])
        setattr(module, name.rpartition(".")[2], buffer.to(buffers_on or device))


def from_first(world: Ranks, state: dict[str, Tensor]) -> Read:
    """Read weights from the first rank, whose `state` holds them whole; the others' `state` is ignored."""

    def read(names: Sequence[str], like: Tensor, stretch: tuple[slice, ...]) -> Tensor:
        whole = state[names[0]].detach().to("cpu", like.dtype) if world.is_first else None
        return world.tensor_from(0, whole, like.shape, like.dtype)[stretch]

    return read


def from_files(folder: Path, model: nn.Module) -> Read | None:
    """Read weights from the safetensors files in a model's folder, each rank its parts.

    Return None if a weight is not there under one of its names: transformers may know it under another.
    """
    files: dict[str, Any] = {}
    for path in _weight_files(folder):
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError):
            return None
        files.update(dict.fromkeys(file.keys(), file))  # type: ignore[no-untyped-call]
    buffers = [([name], buffer) for name, buffer in model.named_buffers() if name in model.state_dict()]
    for names, weight in [*_with_names(model), *buffers]:
        there = [name for name in names if name in files]
        if not there or list(files[there[0]].get_slice(there[0]).get_shape()) != list(weight.shape):
            return None

    def read(names: Sequence[str], like: Tensor, stretch: tuple[slice, ...]) -> Tensor:
        name = next(name for name in names if name in files)
        part: Tensor = files[name].get_slice(name)[stretch] if like.ndim else files[name].get_tensor(name)
        return part

    return read


def _with_names(model: nn.Module) -> Iterator[tuple[list[str], nn.Parameter]]:
    """Yield each weight once, with all its names."""
    names: dict[int, list[str]] = {}
    weights: dict[int, nn.Parameter] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
        weights[id(weight)] = weight
    yield from ((names[key], weight) for key, weight in weights.items())


def _weight_files(folder: Path) -> list[Path]:
    """List the files to which `save_pretrained` wrote a model's weights; other files may lie beside them."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():  # then transformers does not look at an index
        return [folder / SAFE_WEIGHTS_NAME]
    try:
        names = set(json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):  # transformers reports a broken index later
        return []
    return [folder / name for name in sorted(names)]
