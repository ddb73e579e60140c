"""Divides rows among clients by a partitioner; all rows of a conversation go to one client."""

import contextlib
import io
import warnings
from collections import Counter
from collections.abc import Sequence

from datasets import Dataset

from fed.config.combinations import COLUMNS
from fed.data.partition import Partitioner
from fed.data.rows import Preference, in_conversations
from fed.seeding import generator

PartitionIndices = list[list[int]]  # of each client, the numbers of its rows


def partition(rows: Sequence[Preference], partitioner: Partitioner, num_clients: int, seed: int) -> PartitionIndices:
    """Return the row numbers of each client, ascending.

    No row and no conversation has two clients, and no client is empty. Rows may be left over.

    Args:
        rows: The rows to divide.
        partitioner: A fresh one; flwr-datasets' hold one data set in their life.
        num_clients: How many lists to return.
        seed: Decides the order in which the partitioner sees the conversations.

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
    _check_parts(parts, rows)
    return parts


def _check_num_clients(num_clients: int, num_rows: int, num_conversations: int) -> None:
    if num_clients < 1:
        raise ValueError(f"client_num_in_total={num_clients}; expected 1 or more")
    if num_clients > num_conversations:
        raise ValueError(
            f"client_num_in_total={num_clients} but there are {num_rows} rows in {num_conversations} conversations; "
            "lower client_num_in_total"
        )


def _table(rows: Sequence[Preference], conversations: Sequence[Sequence[int]]) -> Dataset:
    """Make the partitioner's table: one line per conversation, whose group is that of its first row."""
    columns = (
        [rows[indices[0]].group for indices in conversations],
        [len(indices) for indices in conversations],
        [indices[0] for indices in conversations],
    )
    return Dataset.from_dict(dict(zip(COLUMNS, columns, strict=True)))


def _divide(partitioner: Partitioner, num_clients: int) -> list[list[int]]:
    """Return the first rows of each client's conversations.

    What partitioners print is dropped: they warn and show progress, and then may succeed.
    """
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
    raise ValueError(f"{name} makes {found} clients but client_num_in_total={num_clients}; set both to one number")


def _check_parts(parts: PartitionIndices, rows: Sequence[Preference]) -> None:
    for client, part in enumerate(parts):
        if not part:
            raise ValueError(
                f"client {client} of {len(parts)} would be empty: there are {in_conversations(rows)}, and no "
                "conversation is divided; lower client_num_in_total or choose a more even partition "
                "(partition=dirichlet: raise partition.alpha)"
            )
    twice = [index for index, count in Counter(index for part in parts for index in part).items() if count > 1]
    if twice:
        raise ValueError(f"{len(twice)} rows, e.g. row {twice[0]}, have two clients; the partitioner must not overlap")
