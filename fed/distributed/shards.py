"""The parts of a split model that one process holds, and the whole tensors they make together."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Shards:
    """The way in which the arrays of a model are split over processes, by name."""

    def __init__(self, model: nn.Module) -> None:
        self._split = {name: weight for name, weight in model.named_parameters() if isinstance(weight, DTensor)}

    def of(self, name: str, whole: Tensor) -> Tensor:
        """Copy this process's part out of a whole array."""
        return whole[index(self._split[name])].clone() if name in self._split else whole.clone()

    def numel(self, name: str, shape: Sequence[int]) -> int:
        """Count the numbers of the whole array `name`, of which a whole or this process's part has that shape."""
        weight = self._split.get(name)
        return math.prod(shape) if weight is None or tuple(shape) != weight.to_local().shape else weight.numel()

    def whole(self, parts: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
        """Put the arrays together one by one; return nothing where `keep` is False.

        All processes of a group call it.
        """
        return whole_state(self.distributed(parts), keep=keep)

    def distributed(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Wrap the parts as distributed tensors that share their memory."""
        split = self._split
        return {name: distributed(part, split[name]) if name in split else part for name, part in parts.items()}


def is_sharded(model: nn.Module) -> bool:
    """Tell whether the weights of a model are split over processes."""
    return any(isinstance(weight, DTensor) for weight in model.parameters())


def whole_state(state: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Put the tensors of a state together in main memory, one by one; return nothing where `keep` is False.

    All processes of a group call it.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        whole = full(tensor.detach())
        if keep:
            found[name] = whole.cpu()
    return found


def full(tensor: Tensor) -> Tensor:
    """Put a tensor together from the parts of all processes of a group; all of them call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """Return the part that this process holds, without a copy; all of a tensor that is not split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def index(weight: Tensor) -> tuple[slice, ...]:
    """Return the stretch of each dimension of a weight that this process holds."""
    found = [slice(0, size) for size in weight.shape]
    if isinstance(weight, DTensor):
        (placement,) = weight.placements
        dim, mesh = placement.dim, weight.device_mesh  # type: ignore[attr-defined]
        size, start = placement.local_shard_size_and_offset(weight.shape[dim], mesh.size(), mesh.get_local_rank())  # type: ignore[attr-defined]
        found[dim] = slice(start, start + size)
    return tuple(found)


def distributed(part: Tensor, like: DTensor) -> DTensor:
    """Wrap this process's part as a distributed tensor that is split as `like` is."""
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
