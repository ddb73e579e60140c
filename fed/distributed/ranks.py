"""The processes of a run: which of them work together, and how they exchange values and sum numbers.

A run of one process is the same program and sends nothing. This file knows nothing of models.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Processes that do one thing together, seen from one of them; by default it is alone, and nothing is sent.

    Every method is a collective: all of these processes must call it, in the same order.
    """

    index: int = 0
    count: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, group: dist.ProcessGroup) -> "Ranks":
        """Return the processes of a torch group to which this one belongs."""
        return cls(dist.get_rank(group), dist.get_world_size(group), group)

    @property
    def is_first(self) -> bool:
        """True in the process that speaks for all of them."""
        return self.index == 0

    def turns(self, count: int) -> Iterator[tuple[range, int, bool]]:
        """Share out `count` pieces of work in turns.

        Each turn yields the numbers of the pieces that are done in it, the number of this process's piece, and whether
        its result counts. All take part in every turn: a process for which no piece is left repeats another process's
        piece and must discard the result.
        """
        for first in range(0, count, self.count):
            turn = range(first, min(first + self.count, count))
            yield turn, turn[min(self.index, len(turn) - 1)], self.index < len(turn)

    def gather(self, item: T) -> list[T]:
        """Return the items of all processes, in order."""
        if self.count == 1:
            return [item]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, item, group=self.group)
        return found

    def any_of(self, item: T | None) -> T | None:
        """Return the item of the first process that has one; None: no process has any."""
        return next((found for found in self.gather(item) if found is not None), None)

    def from_first(self, item: T) -> T:
        """Return the item of the first process; the others' items are ignored."""
        return self.from_rank(0, item)

    def from_rank(self, index: int, item: T) -> T:
        """Return the item of the process with that index; the others' items are ignored."""
        if self.count == 1:
            return item
        carrier = [item if self.index == index else None]
        dist.broadcast_object_list(carrier, group=self.group, group_src=index)
        return carrier[0]  # type: ignore[return-value]

    def from_first_or_raise(self, make: Callable[[], T]) -> T:
        """Call `make` in the first process only and return its result in all of them.

        Raises:
            ValueError: In all of them, if `make` raises it.
        """
        made, mistake = None, None
        if self.is_first:
            try:
                made = make()
            except ValueError as error:
                if self.count == 1:
                    raise
                mistake = str(error)
        mistake, made = self.from_first((mistake, made))
        if mistake is not None:
            raise ValueError(mistake)
        return made  # type: ignore[return-value]

    def tensor_from(self, index: int, tensor: Tensor | None, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return the tensor, of that shape, of the process with that index; the others may give None."""
        found = torch.empty(shape, dtype=dtype) if self.index != index or tensor is None else tensor.contiguous()
        dist.broadcast(found, group=self.group, group_src=index)
        return found

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place; where the others have zeros, one's numbers stay, to the bit."""
        if self.count > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def largest(self, number: int) -> int:
        """Return the largest number of any process."""
        if self.count == 1:
            return number
        found = torch.tensor([number])
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        return int(found)

    def sum_metrics(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Sum each metric over all processes, which must have the same metrics."""
        if self.count == 1:
            return dict(metrics)
        names = sorted(metrics)
        summed = self.sum(torch.tensor([metrics[name] for name in names], dtype=torch.float64))
        return dict(zip(names, summed.tolist(), strict=True))


ALONE = Ranks()


@dataclass(frozen=True)
class Mesh:
    """The arrangement of a run's ranks: groups that train one client each, and the ranks of a group."""

    world: Ranks = ALONE
    groups: Ranks = ALONE  # the ranks at the same place in every group; they hold the same part of the model
    own: Ranks = ALONE  # the ranks of this group; together they hold one model
    device_mesh: DeviceMesh | None = None  # over the ranks of this group; None: it has one rank


ONE_PROCESS = Mesh()


def arrange(groups: int, device: torch.device) -> Mesh:
    """Split the processes of this run into `groups` groups of equal size.

    Raises:
        ValueError: If that number does not divide them.
    """
    if not dist.is_initialized():
        return ONE_PROCESS
    count = dist.get_world_size()
    if count % groups:
        raise ValueError(
            f"clients_in_parallel={groups} does not divide the {count} processes of this run; "
            "every group needs the same number"
        )
    mesh = DeviceMesh(
        device.type, torch.arange(count).view(groups, count // groups), mesh_dim_names=("clients", "shard")
    )
    assert dist.group.WORLD is not None
    return Mesh(
        Ranks.of(dist.group.WORLD),
        Ranks.of(mesh.get_group("clients")),
        Ranks.of(mesh.get_group("shard")),
        mesh["shard"] if count > groups else None,
    )
