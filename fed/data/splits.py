"""Who holds which rows: the server, the test, each client. No conversation has two owners."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fed.data.divide import PartitionIndices
from fed.data.rows import Preference, split_by_conversation
from fed.seeding import generator


@dataclass(frozen=True)
class SplitSettings:
    """The meaning of the keys of the same names."""

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
    held_out: list[Preference]


@dataclass(frozen=True)
class Split:
    """All rows of a run, by owner."""

    validation: list[Preference]  # the server's
    test: list[Preference]  # reported only
    pool: list[Preference]  # what was divided among the clients
    parts: PartitionIndices  # row numbers of the pool, by client
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
        divide: Gives the row numbers each client gets.
        settings: Fractions, limits and seed.

    Raises:
        ValueError: If a side that is needed would be empty.
    """
    tested = {row.conversation for row in test}
    usable = [row for row in train if row.conversation not in tested]
    overlapping = len(train) - len(usable)
    if settings.use_small_dataset:
        usable = sample(usable, len(usable) // 10, settings.seed, "small")
    if settings.n_train_examples is not None:
        usable = sample(usable, settings.n_train_examples, settings.seed, "train")
    if not usable:
        raise ValueError(f"no training pairs are left of {len(train)}; give more data or use_small_dataset=false")
    validation, pool = split_by_conversation(usable, settings.server_fraction, settings.seed)
    if settings.server_fraction and not validation:
        raise ValueError(
            f"server_fraction={settings.server_fraction} of {len(usable)} training pairs is no pair; raise it or "
            "give more data"
        )
    parts = divide(pool)
    return Split(
        validation=sample(validation, settings.n_eval_examples, settings.seed, "validation"),
        test=sample(test, settings.n_test_examples, settings.seed, "test"),
        pool=pool,
        parts=parts,
        clients=[_client_rows([pool[i] for i in part], k, settings) for k, part in enumerate(parts)],
        overlapping=overlapping,
    )


def split_own(
    server: Sequence[Preference],
    test: Sequence[Preference],
    clients: Sequence[list[Preference]],
    settings: SplitSettings,
) -> Split:
    """Every client keeps its own rows; the server validates on all of its own, at most `n_eval_examples` of them."""
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
    """The rows of a client that has data of its own: the same draw of held-out rows whatever its number is."""
    return _client_rows(rows, 0, settings)


def sample(rows: Sequence[Preference], count: int, seed: int, purpose: str) -> list[Preference]:
    """At most `count` rows, drawn by seed, in their original order."""
    if len(rows) <= count:
        return list(rows)
    drawn = generator(seed, purpose).choice(len(rows), count, replace=False)
    return [rows[i] for i in sorted(drawn)]


def _client_rows(rows: list[Preference], client_id: int, settings: SplitSettings) -> ClientRows:
    held_out, train = split_by_conversation(rows, settings.client_eval_fraction, settings.seed + client_id)
    if not train:
        return ClientRows(train=rows, held_out=[])
    return ClientRows(train=train, held_out=held_out)
