"""Rows by owner: the server's, the test's and each client's. No conversation has two owners."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fed.data.divide import PartitionIndices
from fed.data.rows import Preference, split_by_conversation
from fed.seeding import generator


@dataclass(frozen=True)
class SplitSettings:
    """The settings of the same names that decide who owns which rows."""

    seed: int
    use_small_dataset: bool
    n_train_examples: int | None
    server_fraction: float
    client_eval_fraction: float
    n_eval_examples: int
    n_test_examples: int


@dataclass(frozen=True)
class ClientRows:
    """One client's rows."""

    train: list[Preference]
    held_out: list[Preference]  # on which the client evaluates


@dataclass(frozen=True)
class Split:
    """All rows of a run, by owner."""

    validation: list[Preference]  # the server's
    test: list[Preference]  # reported only
    pool: list[Preference]  # divided among the clients
    parts: PartitionIndices  # of the pool
    clients: list[ClientRows]
    overlapping: int  # training rows dropped because their conversation is in the test rows


def split_rows(
    train: Sequence[Preference],
    test: Sequence[Preference],
    divide: Callable[[Sequence[Preference]], PartitionIndices],
    settings: SplitSettings,
) -> Split:
    """Divide rows among server and clients.

    Args:
        train: Rows to learn from.
        test: Rows to report on; at most `n_test_examples` of them, drawn by seed.
        divide: Returns the numbers of each client's rows.
        settings: Fractions, limits and seed.

    Raises:
        ValueError: If a side that is needed would be empty.
    """
    tested = {row.conversation for row in test}
    untested = [row for row in train if row.conversation not in tested]
    usable = _limited(untested, settings)
    if not usable:
        raise ValueError(f"no training pairs are left of {len(train)}; give more data or use_small_dataset=false")
    validation, pool = split_by_conversation(usable, settings.server_fraction, settings.seed)
    if settings.server_fraction and not validation:
        raise ValueError(
            f"server_fraction={settings.server_fraction} of {len(usable)} training pairs gives none; raise it or "
            "give more data"
        )
    parts = divide(pool)
    return Split(
        validation=sample(validation, settings.n_eval_examples, settings.seed, "validation"),
        test=sample(test, settings.n_test_examples, settings.seed, "test"),
        pool=pool,
        parts=parts,
        clients=[_client_rows([pool[i] for i in part], k, settings) for k, part in enumerate(parts)],
        overlapping=len(train) - len(untested),
    )


def split_own(
    server: Sequence[Preference],
    test: Sequence[Preference],
    clients: Sequence[list[Preference]],
    settings: SplitSettings,
) -> Split:
    """Leave every client its own rows; the server validates on at most `n_eval_examples` of its own."""
    pool = [row for rows in clients for row in rows]
    ends = list(accumulate(map(len, clients)))
    return Split(
        validation=sample(server, settings.n_eval_examples, settings.seed, "validation"),
        test=sample(test, settings.n_test_examples, settings.seed, "test"),
        pool=pool,
        parts=[list(range(end - len(rows), end)) for rows, end in zip(clients, ends, strict=True)],
        clients=[own_rows(rows, settings) for rows in clients],
        overlapping=0,
    )


def own_rows(rows: list[Preference], settings: SplitSettings) -> ClientRows:
    """Hold out rows of a client that has data of its own; its number does not influence the draw."""
    return _client_rows(rows, 0, settings)


def _limited(rows: Sequence[Preference], settings: SplitSettings) -> Sequence[Preference]:
    """Draw a tenth of the rows for `use_small_dataset`, and of these at most `n_train_examples`."""
    if settings.use_small_dataset:
        rows = sample(rows, len(rows) // 10, settings.seed, "small")
    if settings.n_train_examples is not None:
        rows = sample(rows, settings.n_train_examples, settings.seed, "train")
    return rows


def sample(rows: Sequence[Preference], count: int, seed: int, purpose: str) -> list[Preference]:
    """Draw at most `count` rows by seed; they keep their order."""
    if len(rows) <= count:
        return list(rows)
    drawn = generator(seed, purpose).choice(len(rows), count, replace=False)
    return [rows[i] for i in sorted(drawn)]


def _client_rows(rows: list[Preference], client_id: int, settings: SplitSettings) -> ClientRows:
    held_out, train = split_by_conversation(rows, settings.client_eval_fraction, settings.seed + client_id)
    if not train:
        return ClientRows(train=rows, held_out=[])
    return ClientRows(train=train, held_out=held_out)
