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


def partition(
    rows: Sequence[Preference], partitioner: Partitioner, num_clients: int | None, seed: int, column: str = "group"
) -> PartitionIndices:
    """Return the row numbers of each client, ascending.

    No row has two clients, and no client is empty; no conversation has two, unless the partitioner divides by a column
    that names the clients. Rows may be left over.

    Args:
        rows: The rows to divide.
        partitioner: A fresh one; flwr-datasets' hold one data set in their life.
        num_clients: How many lists to return; None: as many as the partitioner finds.
        seed: Decides the order in which the partitioner sees the conversations.
        column: The column by which the partitioner divides.

    Raises:
        ValueError: If there is no such column, or the partitioner gives up, leaves a client empty or gives a row to two
            clients.
    """
    by_column = getattr(partitioner, "by_column", False)
    units: dict[tuple[str, str | None], list[int]] = {}
    for index, row in enumerate(rows):
        value = row.column(column) if by_column else None
        if value is not None or not by_column:  # a pair without a value has no client
            units.setdefault((row.conversation, value), []).append(index)
    _check_column(rows, column)
    if num_clients is not None and not by_column:
        _check_num_clients(num_clients, len(rows), len(units))
    order = generator(seed, "partition").permutation(len(units))
    indices = list(units.values())
    partitioner.dataset = _table(rows, [indices[place] for place in order], column)
    first_rows = _divide(partitioner, num_clients)
    unit_at = {rows_of[0]: rows_of for rows_of in indices}
    parts = [sorted(index for first in firsts for index in unit_at[first]) for firsts in first_rows]
    _check_parts(parts, rows)
    return parts


def _check_column(rows: Sequence[Preference], column: str) -> None:
    if column not in COLUMNS and all(row.column(column) is None for row in rows):
        names = dict.fromkeys(("group", "prompt", *(name for row in rows for name in row.extra.names)))
        raise ValueError(f"the data has no column {column!r} to divide by; it has {', '.join(names)}")


def _check_num_clients(num_clients: int, num_rows: int, num_conversations: int) -> None:
    if num_clients < 1:
        raise ValueError(f"client_num_in_total={num_clients}; expected 1 or more")
    if num_clients > num_conversations:
        raise ValueError(
            f"client_num_in_total={num_clients} but there are {num_rows} rows in {num_conversations} conversations; "
            "lower client_num_in_total"
        )


def _table(rows: Sequence[Preference], units: Sequence[Sequence[int]], column: str) -> Dataset:
    """Make the partitioner's table: one line per conversation, whose group and column are those of its first row."""
    firsts = [rows[indices[0]] for indices in units]
    found = {
        "group": [row.group for row in firsts],
        "rows": [len(indices) for indices in units],
        "first_row": [indices[0] for indices in units],
    }
    if column not in COLUMNS:
        found[column] = [row.column(column) or "" for row in firsts]
    return Dataset.from_dict(found)


def _divide(partitioner: Partitioner, num_clients: int | None) -> list[list[int]]:
    """Return the first rows of each client's conversations.

    What partitioners print is dropped: they warn and show progress, and then may succeed.
    """
    name = type(partitioner).__name__
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            found = partitioner.num_partitions
            if num_clients is None or found == num_clients:
                return [partitioner.load_partition(client)[:]["first_row"] for client in range(found)]
        except (ValueError, ZeroDivisionError, IndexError, KeyError) as error:
            if type(partitioner).__module__.startswith("fed."):  # ours say themselves what is wrong
                raise
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
