"""Partitioners of our own, for `partition._target_`; flwr-datasets has the others (iid, Dirichlet, by size)."""

import sys
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from fed.seeding import generator


class Partitioner(Protocol):
    """The interface of a partitioner; every `flwr_datasets.partitioner.Partitioner` has it.

    `dataset` is set once, to a table with one line per conversation in random order and the columns `group`, `rows`
    (how many rows the conversation has), `first_row` (its place in the data) and the column of the data that
    `partition_by` names. Clients get lines of that table.
    """

    dataset: Dataset

    @property
    def num_partitions(self) -> int:
        """Return the number of clients."""

    def load_partition(self, partition_id: int) -> Dataset:
        """Return the lines of one client."""


class ContiguousPartitioner:
    """Blocks in data order, as published FeDPO divides: a client's rows may all be about one topic.

    Cuts fall between conversations: a conversation belongs to the block its first row is in, and its later rows follow
    it. When each has one row, the even blocks are exactly the published ones.

    Args:
        num_partitions: K.
        even: True: K blocks of floor(N / K) rows, the remainder the server's; False: K - 1 random cuts, nothing unused.
        seed: Decides the random cuts.
    """

    dataset: Dataset
    server_last = True  # the server's rows come from the end of the data too, with those that clients leave

    def __init__(self, num_partitions: int, even: bool = True, seed: int = 0) -> None:
        self.num_partitions = num_partitions
        self.even = even
        self.seed = seed

    def load_partition(self, partition_id: int) -> Dataset:
        """Return the lines of one block, in data order."""
        return self.dataset.select(self._places[self._blocks == partition_id])

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        return np.argsort(np.array(self.dataset["first_row"]))

    @cached_property
    def _blocks(self) -> npt.NDArray[np.int64]:
        """The block of each conversation, in data order; those of block `num_partitions` and above are unused."""
        sizes = np.array(self.dataset["rows"])[self._places]
        if self.even:
            blocks: npt.NDArray[np.int64] = (sizes.cumsum() - sizes) // (sizes.sum() // self.num_partitions)
            return blocks
        # Distinct cuts, none at 0: unlike the published ones they leave no client empty.
        rng = generator(self.seed, "contiguous cuts")
        cuts = rng.choice(np.arange(1, len(sizes)), self.num_partitions - 1, replace=False)
        return np.searchsorted(np.sort(cuts), np.arange(len(sizes)), side="right")


class NaturalPartitioner:
    """The clients that the data has: one for each value of a column, such as a user's number.

    Pairs of one conversation go to several clients if several people judged it.

    Args:
        num_partitions: Number of clients; None: all. Fewer than the data has are drawn by seed.
        column: The column that names the client of a pair.
        min_pairs: Clients with fewer pairs are left out.
        max_clients: If there are more, so many are drawn by seed; None: all.
        seed: Decides that draw.

    Attributes:
        names: The values of the column, one for each client, in their order.
        remarks: What was left out, for people to read.

    Raises:
        ValueError: If a bound is below 1, or the data has fewer clients than asked for.
    """

    dataset: Dataset
    by_column = True  # the table has lines for each conversation and value of the column

    def __init__(
        self,
        num_partitions: int | None,
        column: str,
        min_pairs: int = 1,
        max_clients: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, bound in (("min_pairs", min_pairs), ("max_clients", max_clients)):
            if bound is not None and bound < 1:
                raise ValueError(f"partition.{name}={bound} is out of range; expected at least 1")
        self.column, self.min_pairs, self.max_clients, self.seed = column, min_pairs, max_clients, seed
        self._wanted = num_partitions

    @property
    def num_partitions(self) -> int:
        """The number of clients."""
        return len(self.names)

    def load_partition(self, partition_id: int) -> Dataset:
        """Return the lines of one client, in the order of the data."""
        places = self._places[self.names[partition_id]]
        return self.dataset.select(sorted(places, key=self._table["first_row"].__getitem__))

    @cached_property
    def names(self) -> list[str]:
        """The values of the column, one for each client."""
        sizes = self._sizes
        found = sorted((name for name, size in sizes.items() if size >= self.min_pairs), key=_natural)
        if not found:
            raise ValueError(
                f"no client by {self.column} has {self.min_pairs} of the {len(self._table[self.column])} pairs to share"
                f" out; the largest of {len(sizes)} has {max(sizes.values(), default=0)}: lower partition.min_pairs"
            )
        most = min(len(found), self.max_clients or len(found))
        if self._wanted is not None and self._wanted > most:
            raise ValueError(
                f"client_num_in_total={self._wanted} but the data has {most} clients by {self.column}"
                f"{f' with {self.min_pairs} pairs or more' if self.min_pairs > 1 else ''}"
                f"{f', of which partition.max_clients={most} are taken' if most < len(found) else ''}; lower it, or "
                "give client_num_in_total=null, which takes all"
            )
        count = most if self._wanted is None else self._wanted
        drawn = generator(self.seed, "natural clients").choice(len(found), count, replace=False)
        return [found[place] for place in sorted(drawn)]

    @property
    def remarks(self) -> list[str]:
        """Lines that say how many clients there are and which were left out."""
        sizes, taken = self._sizes, set(self.names)
        small = [size for size in sizes.values() if size < self.min_pairs]
        others = [size for name, size in sizes.items() if size >= self.min_pairs and name not in taken]
        found = [f"clients by {self.column}: {len(taken)} of {len(sizes)}"]
        if small:
            found.append(f"{len(small)} with fewer than {self.min_pairs} pairs are left out ({sum(small)} pairs)")
        if others:
            found.append(f"{len(others)} were not drawn ({sum(others)} pairs)")
        return ["; ".join(found)]

    @cached_property
    def _table(self) -> dict[str, list[Any]]:
        """The columns as lists: one by one, their values take long."""
        found: dict[str, list[Any]] = self.dataset[:]
        return found

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for place, name in enumerate(self._table[self.column]):
            found.setdefault(name, []).append(place)
        return found

    @cached_property
    def _sizes(self) -> dict[str, int]:
        """The number of pairs of each client."""
        rows = self._table["rows"]
        return {name: sum(rows[place] for place in places) for name, places in self._places.items()}


def _natural(name: str) -> tuple[int, str]:
    """Return the key that sorts numbers by size and before words."""
    return (int(name), "") if name.isascii() and name.isdigit() else (sys.maxsize, name)


class GroupPartitioner:
    """Whole groups, such as topics: one or several per client; with more clients than groups, clients share a group.

    Sizes count conversations. Groups are dealt largest first, each to the client with least; with more clients, each
    further client goes to the group with most conversations per client.

    Args:
        num_partitions: Number of clients.
        partition_by: Column with the group.
    """

    dataset: Dataset

    def __init__(self, num_partitions: int, partition_by: str = "group") -> None:
        self.num_partitions = num_partitions
        self.partition_by = partition_by

    def load_partition(self, partition_id: int) -> Dataset:
        """Return the lines of one client, group after group."""
        return self.dataset.select(self._clients[partition_id])

    @cached_property
    def _clients(self) -> list[list[int]]:
        places: dict[str, list[int]] = {}
        for place, group in enumerate(self.dataset[self.partition_by]):
            places.setdefault(group, []).append(place)
        largest_first = sorted(places, key=lambda group: (-len(places[group]), group))
        groups = [places[group] for group in largest_first]
        divide = _share_groups if len(groups) < self.num_partitions else _deal_groups
        return divide(groups, self.num_partitions)


def _share_groups(groups: list[list[int]], num_clients: int) -> list[list[int]]:
    shares = [1] * len(groups)
    while sum(shares) < num_clients:
        needy = max(range(len(groups)), key=lambda index: len(groups[index]) / shares[index])
        shares[needy] += 1
    return [group[start::share] for group, share in zip(groups, shares, strict=True) for start in range(share)]


def _deal_groups(groups: list[list[int]], num_clients: int) -> list[list[int]]:
    clients: list[list[int]] = [[] for _ in range(num_clients)]
    for group in groups:
        min(clients, key=len).extend(group)
    return clients


class OwnData:
    """A file for every client: nothing is divided, and `datasets` are the server's alone.

    Args:
        num_partitions: Number of clients.
        client_data: Their files, in order; none where each client is told its file by itself, as a SuperNode is.

    Raises:
        ValueError: If there are files, but not one for each client.
    """

    def __init__(self, num_partitions: int, client_data: Sequence[str] = ()) -> None:
        if client_data and len(client_data) != num_partitions:
            raise ValueError(
                f"client_data names {len(client_data)} files but client_num_in_total={num_partitions}; set "
                f"client_num_in_total={len(client_data)}"
            )
        self.num_partitions = num_partitions
        self.client_data = list(client_data)
