"""Rows by owner: the server's, the test's and each client's. No conversation has two owners."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from fed.data.divide import PartitionIndices
from fed.data.rows import Preference, in_conversations, split_by_conversation, told_apart
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
    server_last: bool = False  # the server's rows are the last ones, and all that clients leave; else they are drawn


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
    overlapping: int  # rows dropped because their conversation is in the test rows or, of training, the server's
    shared: int = 0  # rows of clients with data of their own whose conversation is in the server's or the test rows
    unused: int = 0  # training rows that nobody has

    def forget_texts(self) -> None:
        """Empty all lists of rows; a run calls it when its pairs are token ids and nothing asks for texts any more."""
        for rows in (
            self.validation,
            self.test,
            self.pool,
            *(part for one in self.clients for part in vars(one).values()),
        ):
            rows.clear()


def split_rows(
    train: Sequence[Preference],
    validation: Sequence[Preference],
    test: Sequence[Preference],
    divide: Callable[[Sequence[Preference]], PartitionIndices],
    settings: SplitSettings,
) -> Split:
    """Divide rows among server and clients.

    Args:
        train: Rows to learn from.
        validation: The server's rows; none: they are taken from `train`.
        test: Rows to report on; at most `n_test_examples` of them, drawn by seed.
        divide: Returns the numbers of each client's rows.
        settings: Fractions, limits and seed.

    Raises:
        ValueError: If a side that is needed would be empty.
    """
    server = _untested(validation, test)
    untaken = _without(train, [*test, *server])
    overlapping = len(train) - len(untaken) + len(validation) - len(server)
    usable = _usable(train, untaken, settings)
    is_from_train = not server
    server, pool = _server_share(usable, settings) if is_from_train else (server, list(usable))
    parts = divide(pool)
    if is_from_train and server and settings.server_last:
        left, pool, parts = _left_over(pool, parts)
        server = [*left, *server]
    return Split(
        validation=sample(server, settings.n_eval_examples, settings.seed, "validation"),
        test=sample(test, settings.n_test_examples, settings.seed, "test"),
        pool=pool,
        parts=parts,
        clients=[_client_rows([pool[i] for i in part], k, settings) for k, part in enumerate(parts)],
        overlapping=overlapping,
    )


def _without(rows: Sequence[Preference], others: Sequence[Preference]) -> list[Preference]:
    """Return the rows whose conversation none of the others has."""
    taken = {row.conversation for row in others}
    return [row for row in rows if row.conversation not in taken]


def _untested(validation: Sequence[Preference], test: Sequence[Preference]) -> list[Preference]:
    """Return the validation rows whose conversations are not tested on.

    Raises:
        ValueError: If there are validation rows, but no such ones.
    """
    server = _without(validation, test)
    if validation and not server:
        raise ValueError(
            f"all {len(validation)} validation pairs are of conversations that are also in the test pairs, such as "
            f"{validation[0].conversation!r:.60}; give other ones, or leave the validation files out"
        )
    return server


def _usable(
    train: Sequence[Preference], untaken: Sequence[Preference], settings: SplitSettings
) -> Sequence[Preference]:
    """Return the rows that the run uses of the training rows whose conversations nobody else has.

    Raises:
        ValueError: If there are none.
    """
    if train and not untaken:
        raise ValueError(
            f"all {len(train)} training pairs are of conversations that are also in the test or validation pairs, such "
            f"as {train[0].conversation!r:.60}; pairs with one first human turn are one conversation: tell them apart "
            "by a field conversation, or give other test pairs"
        )
    usable = _limited(untaken, settings)
    if not usable:
        raise ValueError(f"no training pairs are left of {len(train)}; give more data or use_small_dataset=false")
    return usable


def _server_share(rows: Sequence[Preference], settings: SplitSettings) -> tuple[list[Preference], list[Preference]]:
    """Return the server's rows of the training rows, and the others.

    Raises:
        ValueError: If there are too few for a share of the server's.
    """
    seed = None if settings.server_last else settings.seed
    server, pool = split_by_conversation(rows, settings.server_fraction, seed)
    if settings.server_fraction and not server:
        raise ValueError(
            f"server_fraction={settings.server_fraction} of {in_conversations(rows)} to train on gives none, because "
            "no conversation is divided; give more data"
        )
    return server, pool


def _left_over(
    rows: Sequence[Preference], parts: PartitionIndices
) -> tuple[list[Preference], list[Preference], PartitionIndices]:
    """Return the rows that no client has, the others, and the clients' numbers of these."""
    divided = sorted(index for part in parts for index in part)
    place = {index: number for number, index in enumerate(divided)}
    left = [row for index, row in enumerate(rows) if index not in place]
    return left, [rows[index] for index in divided], [[place[index] for index in part] for part in parts]


def split_own(
    server: Sequence[Preference],
    test: Sequence[Preference],
    clients: Sequence[list[Preference]],
    settings: SplitSettings,
    unused: int = 0,
) -> Split:
    """Leave every client its own rows; the server validates on at most `n_eval_examples` of its own."""
    pool = [row for rows in clients for row in rows]
    ends = list(accumulate(map(len, clients)))
    validation = sample(server, settings.n_eval_examples, settings.seed, "validation")
    tested = sample(test, settings.n_test_examples, settings.seed, "test")
    return Split(
        validation=validation,
        test=tested,
        pool=pool,
        parts=[list(range(end - len(rows), end)) for rows, end in zip(clients, ends, strict=True)],
        clients=[own_rows(rows, settings) for rows in clients],
        overlapping=0,
        shared=len(pool) - len(_without(pool, told_apart([*validation, *tested]))),
        unused=unused,
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
