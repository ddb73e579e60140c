"""One model over several processes: each holds a part of every weight (FSDP2), and they compute with it together."""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from fed.distributed.ranks import Mesh, Ranks

# That stretch of each dimension of the weight that has these names (tied ones have several).
Read = Callable[[Sequence[str], Tensor, tuple[slice, ...]], Tensor]


class Root(nn.Module):
    """What FSDP takes for the whole model: all that reads the model's weights runs inside its forward pass.

    So single parts of the model, such as the head's weight, can be used. The model keeps its class and its names.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, a tree of tensors."""
        return compute()


def shard(
    model: nn.Module, mesh: Mesh, *, block_name: str | None, compute_dtype: torch.dtype | None, cpu_offload: bool
) -> Root:
    """Split every weight of `model`, in place, over the ranks of this group.

    Args:
        model: On the meta device or not.
        mesh: With a device mesh.
        block_name: Class of the modules whose weights are gathered together; None: the longest list of like modules.
        compute_dtype: In which weights are gathered; None: as they are stored.
        cpu_offload: Keep weights, gradients and optimizer state in main memory between uses.
    """
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if cpu_offload else OffloadPolicy()
    # Rotary tables come into a block in float32 and stay so.
    precision = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    how: Any = {"mesh": mesh.device_mesh, "mp_policy": precision, "offload_policy": offload}
    for block in blocks(model, block_name):
        fully_shard(block, **how)
    root = Root(model)
    fully_shard(root, **how)
    return root


def blocks(model: nn.Module, name: str | None) -> list[nn.Module]:
    """The modules of that class; of the longest list of modules of one class if there is no name."""
    if name is not None:
        return [module for module in model.modules() if type(module).__name__ == name]
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    alike = [modules for modules in lists if len({type(module) for module in modules}) == 1]
    return max(alike, key=len, default=[])


def run(root: nn.Module, compute: Callable[[], Any]) -> Any:
    """What `compute` returns, run while weights can be gathered.

    Where no gradient is wanted, they are parted again at once: FSDP would keep the root's, and so miss what is written
    into the parts.
    """
    result = root(compute)
    if not torch.is_grad_enabled():
        assert isinstance(root, FSDPModule)
        root.reshard()
    return result


@torch.no_grad()
def fill(model: nn.Module, device: torch.device, read: Read) -> None:
    """Give a model that was made, and perhaps split, on the meta device its memory and its values."""
    values = {}
    for names, weight in _with_names(model):
        part = read(names, weight, index(weight)).to(device, weight.dtype).clone(memory_format=torch.contiguous_format)
        whole = _distributed(part, weight) if isinstance(weight, DTensor) else part
        parameter = nn.Parameter(whole, requires_grad=weight.requires_grad)
        values.update(dict.fromkeys(names, parameter))
    model.load_state_dict(values, strict=False, assign=True)
    buffers = dict(model.named_buffers())
    for name in sorted(buffers.keys() & model.state_dict().keys()):
        buffers[name].copy_(read([name], buffers[name], index(buffers[name])))
    for name, buffer in buffers.items():
        module = model.get_submodule(name.rpartition(".")[0])
        setattr(module, name.rpartition(".")[2], buffer.to(device))


def _with_names(model: nn.Module) -> Iterator[tuple[list[str], nn.Parameter]]:
    """Each weight once, with all names it has."""
    names: dict[int, list[str]] = {}
    weights: dict[int, nn.Parameter] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(weight), []).append(name)
        weights[id(weight)] = weight
    yield from ((names[key], weight) for key, weight in weights.items())


def from_first(world: Ranks, state: dict[str, Tensor]) -> Read:
    """Weights that the first rank holds as a whole, in `state`; what the others give is ignored."""

    def read(names: Sequence[str], like: Tensor, stretch: tuple[slice, ...]) -> Tensor:
        whole = state[names[0]].detach().to("cpu", like.dtype) if world.is_first else None
        return world.tensor_from(0, whole, like.shape, like.dtype)[stretch]

    return read


def from_files(folder: Path, model: nn.Module) -> Read | None:
    """Weights as the safetensors files of a model's folder hold them, each rank its parts; None: some are not there.

    They may stand there under other names, which transformers knows.
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


def _weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights as `save_pretrained` writes them; others may lie beside them."""
    if (folder / SAFE_WEIGHTS_NAME).is_file():  # then transformers does not look at an index
        return [folder / SAFE_WEIGHTS_NAME]
    try:
        names = set(json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text())["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):  # transformers says what is wrong with it
        return []
    return [folder / name for name in sorted(names)]


class Shards:
    """How the arrays of a model that is split over processes are split, by name."""

    def __init__(self, model: nn.Module) -> None:
        self._split = {name: weight for name, weight in model.named_parameters() if isinstance(weight, DTensor)}

    def of(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of a whole array, in memory of its own."""
        return whole[index(self._split[name])].clone() if name in self._split else whole.clone()

    def numel(self, name: str, shape: Sequence[int]) -> int:
        """Numbers in an array of that shape, or in the whole of which it is this process's part."""
        weight = self._split.get(name)
        return math.prod(shape) if weight is None or tuple(shape) != weight.to_local().shape else weight.numel()

    def whole(self, parts: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
        """The arrays put together, one by one; empty where `keep` is not set. All processes of a group call it."""
        return whole_state(self.distributed(parts), keep=keep)

    def distributed(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The arrays around these very parts."""
        split = self._split
        return {name: _distributed(part, split[name]) if name in split else part for name, part in parts.items()}


def _distributed(part: Tensor, like: DTensor) -> DTensor:
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def index(weight: Tensor) -> tuple[slice, ...]:
    """Which stretch of each dimension of a weight this process holds."""
    found = [slice(0, size) for size in weight.shape]
    if isinstance(weight, DTensor):
        (placement,) = weight.placements
        dim, mesh = placement.dim, weight.device_mesh  # type: ignore[attr-defined]
        size, start = placement.local_shard_size_and_offset(weight.shape[dim], mesh.size(), mesh.get_local_rank())  # type: ignore[attr-defined]
        found[dim] = slice(start, start + size)
    return tuple(found)


def local(tensor: Tensor) -> Tensor:
    """The part that this process holds, its very memory; of a tensor that is not sharded, all of it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full(tensor: Tensor) -> Tensor:
    """All of it, from the parts that the processes hold: a collective of the ranks of a group."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def is_sharded(model: nn.Module) -> bool:
    """Whether its weights are split over processes."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def whole_state(state: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """The state with whole tensors in main memory, put together one by one; empty where `keep` is not set."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        whole = full(tensor.detach())
        if keep:
            found[name] = whole.cpu()
    return found
