"""Rows to clients: flwr-datasets' partitioners and two of our own divide conversations, never a conversation."""

import contextlib
import hashlib
import io
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from datasets import Dataset

from fed.data.rows import Preference
from fed.seeding import generator


class Partitioner(Protocol):
    """What `partition` needs; every `flwr_datasets.partitioner.Partitioner` has it.

    `dataset` is set once, to a table with one line per conversation in random order and the columns `group`, `rows`
    (how many rows the conversation has) and `first_row` (its place in the data). Clients get lines of that table.
    """

    dataset: Dataset

    @property
    def num_partitions(self) -> int:
        """For how many clients it divides."""

    def load_partition(self, partition_id: int) -> Dataset:
        """The lines of one client."""


def partition(rows: Sequence[Preference], partitioner: Partitioner, num_clients: int, seed: int) -> list[list[int]]:
    """Row indices of each client, ascending; no row and no conversation has two clients, no client is empty.

    Args:
        rows: The rows to divide.
        partitioner: A fresh one; flwr-datasets' hold one data set in their life.
        num_clients: How many lists to return.
        seed: Order in which the partitioner sees the conversations.

    Raises:
        ValueError: If the partitioner gives up, leaves a client empty or gives a row to two clients.
    """
    conversations: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        conversations.setdefault(row.conversation, []).append(index)
    _check_num_clients(num_clients, len(rows), len(conversations))
    order = generator(seed, "partition").permutation(len(conversations))
    indices = list(conversations.values())
    partitioner.dataset = _table(rows, [indices[place] for place in order])
    first_rows = _divide(partitioner, num_clients)
    conversation_at = {rows_of[0]: rows_of for rows_of in indices}
    parts = [sorted(index for first in firsts for index in conversation_at[first]) for firsts in first_rows]
    _check_parts(parts)
    return parts


def describe(
    parts: Sequence[Sequence[int]], rows: Sequence[Preference], test: Sequence[Preference] = ()
) -> dict[str, object]:
    """Who has which rows, with the proof that clients and `unused` together have each row once; names of test pairs.

    A pair, and a conversation, has the same name in all runs.
    """
    used = {index for part in parts for index in part}
    unused = [index for index in range(len(rows)) if index not in used]
    return {
        "num_clients": len(parts),
        "num_rows": len(rows),
        "cover": used | set(unused) == set(range(len(rows))),
        "disjoint": len(used) == sum(map(len, parts)),
        "unused": unused,
        "clients": [_describe_client([rows[index] for index in part], part) for part in parts],
        "test": {
            "pairs": [_name([row.prompt, row.chosen, row.rejected]) for row in test],
            "conversations": [_name(row.conversation) for row in test],
        },
    }


def _name(content: object) -> str:
    """Sixteen digits of the SHA-256."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _describe_client(rows: Sequence[Preference], indices: Sequence[int]) -> dict[str, object]:
    text = json.dumps([[row.prompt, row.chosen, row.rejected] for row in rows])
    return {
        "num_rows": len(rows),
        "groups": dict(sorted(Counter(row.group for row in rows).items())),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "rows": list(indices),
    }


def write_partition(
    path: str | Path, parts: Sequence[Sequence[int]], rows: Sequence[Preference], test: Sequence[Preference] = ()
) -> None:
    """Write `describe` as JSON; the same parts of the same rows give the same bytes."""
    Path(path).write_text(json.dumps(describe(parts, rows, test)) + "\n", encoding="utf-8")


class ContiguousPartitioner:
    """The published division: blocks in data order, so a client's rows may all be about one topic.

    Cuts fall between conversations: a conversation belongs to the block its first row is in, and its later rows follow
    it. When each has one row, the even blocks are exactly the published ones.

    Args:
        num_partitions: K.
        even: True: K blocks of floor(N / K) rows, the remainder unused; False: K - 1 random cuts, nothing unused.
        seed: Of the random cuts.
    """

    dataset: Dataset

    def __init__(self, num_partitions: int, even: bool = True, seed: int = 0) -> None:
        self.num_partitions = num_partitions
        self.even = even
        self.seed = seed

    def load_partition(self, partition_id: int) -> Dataset:
        """The lines of one block, in data order."""
        return self.dataset.select(self._places[self._blocks == partition_id])

    @cached_property
    def _places(self) -> npt.NDArray[np.int64]:
        return np.argsort(np.array(self.dataset["first_row"]))

    @cached_property
    def _blocks(self) -> npt.NDArray[np.int64]:
        """The block of each conversation in data order; `num_partitions` and above: unused."""
        sizes = np.array(self.dataset["rows"])[self._places]
        if self.even:
            blocks: npt.NDArray[np.int64] = (sizes.cumsum() - sizes) // (sizes.sum() // self.num_partitions)
            return blocks
        # Distinct cuts, none at 0: unlike the published ones they leave no client empty.
        rng = generator(self.seed, "contiguous cuts")
        cuts = rng.choice(np.arange(1, len(sizes)), self.num_partitions - 1, replace=False)
        return np.searchsorted(np.sort(cuts), np.arange(len(sizes)), side="right")


class GroupPartitioner:
    """Whole groups: one or several per client, or, with more clients than groups, several clients per group.

    Sizes count conversations. Groups are dealt largest first, each to the client with least; clients to groups, each to
    the group with most per client.

    Args:
        num_partitions: Number of clients.
        partition_by: Column with the group.
    """

    dataset: Dataset

    def __init__(self, num_partitions: int, partition_by: str = "group") -> None:
        self.num_partitions = num_partitions
        self.partition_by = partition_by

    def load_partition(self, partition_id: int) -> Dataset:
        """The lines of one client, group after group."""
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


class OwnData:
    """Nothing is divided: every client has a file of its own, and `datasets` are the server's alone.

    Args:
        num_partitions: Number of clients.
        client_data: Their files, in order; none where each client is told its file by itself, as a SuperNode is.

    Raises:
        ValueError: If there are files, but another number.
    """

    def __init__(self, num_partitions: int, client_data: Sequence[str] = ()) -> None:
        if client_data and len(client_data) != num_partitions:
            raise ValueError(
                f"client_data names {len(client_data)} files but client_num_in_total={num_partitions}; set "
                f"client_num_in_total={len(client_data)}"
            )
        self.num_partitions = num_partitions
        self.client_data = list(client_data)


def _deal_groups(groups: list[list[int]], num_clients: int) -> list[list[int]]:
    clients: list[list[int]] = [[] for _ in range(num_clients)]
    for group in groups:
        min(clients, key=len).extend(group)
    return clients


def _share_groups(groups: list[list[int]], num_clients: int) -> list[list[int]]:
    shares = [1] * len(groups)
    while sum(shares) < num_clients:
        needy = max(range(len(groups)), key=lambda index: len(groups[index]) / shares[index])
        shares[needy] += 1
    return [group[start::share] for group, share in zip(groups, shares, strict=True) for start in range(share)]


def _table(rows: Sequence[Preference], conversations: Sequence[Sequence[int]]) -> Dataset:
    """One line per conversation; its group is that of its first row."""
    return Dataset.from_dict(
        {
            "group": [rows[indices[0]].group for indices in conversations],
            "rows": [len(indices) for indices in conversations],
            "first_row": [indices[0] for indices in conversations],
        }
    )


def _divide(partitioner: Partitioner, num_clients: int) -> list[list[int]]:
    """First rows of each client's conversations; quiet, for partitioners warn, show progress and then may succeed."""
    name = type(partitioner).__name__
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            found = partitioner.num_partitions
            if found == num_clients:
                return [list(partitioner.load_partition(client)["first_row"]) for client in range(num_clients)]
        except (ValueError, ZeroDivisionError, IndexError, KeyError) as error:
            raise ValueError(
                f"{name} cannot divide the data among {num_clients} clients ({' '.join(str(error).split())}); lower "
                "client_num_in_total or partition.min_partition_size, or raise partition.alpha, where there is one"
            ) from error
    raise ValueError(f"{name} makes {found} clients but client_num_in_total={num_clients}; set both alike")


def _check_num_clients(num_clients: int, num_rows: int, num_conversations: int) -> None:
    if num_clients < 1:
        raise ValueError(f"client_num_in_total={num_clients}; expected 1 or more")
    if num_clients > num_conversations:
        raise ValueError(
            f"client_num_in_total={num_clients} but there are {num_rows} rows in {num_conversations} conversations; "
            "lower client_num_in_total"
        )


def _check_parts(parts: Sequence[Sequence[int]]) -> None:
    for client, part in enumerate(parts):
        if not part:
            raise ValueError(
                f"client {client} of {len(parts)} would be empty; lower client_num_in_total or choose a more even "
                "partition (partition=dirichlet: raise partition.alpha)"
            )
    twice = [index for index, count in Counter(index for part in parts for index in part).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} rows, e.g. row {twice[0]}, have two clients; the partitioner must not overlap")
