"""The rows of a run, loaded as the configuration says and given to their owners."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from typing import NamedTuple

from fed.config import components
from fed.config.choices import chosen
from fed.config.schema import Config, flat
from fed.data.divide import partition
from fed.data.hub import HubSettings
from fed.data.partition import OwnData
from fed.data.rows import Loaded, Preference, merged, told_apart
from fed.data.source import Reading
from fed.data.splits import Split, SplitSettings, split_own, split_rows
from fed.tracking import steps
from load_data import load_file, load_splits

NATURAL = "fed.data.partition.NaturalPartitioner"


class OwnedRows(NamedTuple):
    """All rows of a run by owner."""

    split: Split
    skipped: dict[str, int]  # records left out while loading, by reason
    unread: tuple[str, ...]  # fields of the records that nothing reads, and no row keeps
    forms: tuple[str, ...]  # what the records were taken for, where that had to be recognised
    remarks: tuple[str, ...] = ()  # on the files, and on the clients by the partitioner
    names: tuple[str, ...] = ()  # of clients that the data names


def shared_out(
    config: Config,
    given: frozenset[str],
    reading: Reading,
    loaded: tuple[Loaded, Loaded, Loaded] | None = None,
) -> OwnedRows:
    """Load the run's rows, read as `reading` says, and give them to the server, the test and the clients.

    Args:
        config: The settings.
        given: The keys that were typed.
        reading: How records become rows.
        loaded: The rows to train, to validate and to test on; None: they are loaded.

    Raises:
        ValueError: If they cannot be read or shared out.
    """
    partitioner = components.create("partition", config.partition, given)
    settings, lists = _settings(config), loaded or _loaded(config, reading)
    train, validation, test = lists
    _check_validation(config, given, validation, has_own=isinstance(partitioner, OwnData))
    if isinstance(partitioner, OwnData):
        own = [load_file(path, reading=reading) for path in partitioner.client_data]
        server, unused = (validation.rows, len(train.rows)) if validation.rows else (train.rows, 0)
        return _owned(split_own(server, test.rows, [client.rows for client in own], settings, unused), *lists, *own)
    _check_partitioner(config, partitioner)
    train_rows, validation_rows, test_rows = _apart(train.rows, validation.rows, test.rows)
    split = split_rows(
        train_rows,
        validation_rows,
        test_rows,
        lambda rows: partition(rows, partitioner, config.client_num_in_total, config.seed, _column(config)),
        replace(settings, server_last=getattr(partitioner, "server_last", False)),
    )
    owned, names = _owned(split, *lists), tuple(getattr(partitioner, "names", ()))
    remarks = (*owned.remarks, *getattr(partitioner, "remarks", ()), *_no_federation(names, train_rows))
    return owned._replace(remarks=remarks, names=names)


def _check_partitioner(config: Config, made: object) -> None:
    if not hasattr(made, "load_partition"):
        raise ValueError(
            f"partition._target_={config.partition['_target_']} makes something other than a partitioner: "
            f"{type(made).__name__}; expected a class with dataset, num_partitions and load_partition"
        )


def _no_federation(names: Sequence[str], rows: Sequence[Preference]) -> Iterator[str]:
    """Warn of data that has one client only."""
    if len(names) == 1:
        columns = sorted({name for row in rows for name in row.extra.names})
        others = f", of which the data has {', '.join(columns[:5])}" if columns else ""
        yield f"warning: one client is no federation; partition.column= names another column{others}"


def count_clients(config: Config) -> int:
    """Return how many clients the data has; the rows are kept until they are shared out.

    Raises:
        ValueError: If the partition does not leave the number to the data, or the data cannot be read.
    """
    if config.partition["_target_"] != NATURAL:
        raise ValueError("client_num_in_total=null takes all clients that the data has, so it needs partition=natural")
    if config.engine == "flower":
        raise ValueError("client_num_in_total=null is for engine=local and engine=ray; give the number of SuperNodes")
    loss = components.bind("loss", config.loss, frozenset())
    reading = reading_of(config, supervised=getattr(loss.func, "supervised", False))
    steps.say(f"counting the clients of the data: {'+'.join(config.datasets)}")
    _kept[_key(config, reading)] = loaded = _loaded(config, reading)
    own = replace(config, client_num_in_total=None, partition={**config.partition, "num_partitions": None})
    return len(shared_out(own, frozenset(), reading, loaded).split.parts)


# What was loaded to count the clients, until it is shared out.
_kept: dict[str, tuple[Loaded, Loaded, Loaded]] = {}


def _key(config: Config, reading: Reading) -> str:
    return repr((config.datasets, config.data_dir, config.seed, config.test_fraction, reading))


def _column(config: Config) -> str:
    """Return the column of the data by which the partition divides."""
    return str(config.partition.get("column") or config.partition.get("partition_by") or "group")


def one_clients(own: Loaded, config: Config) -> OwnedRows:
    """Return the rows of a process that knows one client's rows and no others."""
    return _owned(split_own([], [], [own.rows], _settings(config)), own)


def _check_validation(config: Config, given: frozenset[str], validation: Loaded, *, has_own: bool) -> None:
    """Refuse keys of the server's pairs that have no effect with the data's files."""
    if validation.rows and "server_fraction" in given and config.server_fraction:
        raise ValueError(
            f"server_fraction={config.server_fraction} has no effect: the data has validation files, whose pairs are "
            "the server's; leave it out"
        )
    if "n_eval_examples" in given and not (validation.rows or config.server_fraction or has_own):
        raise ValueError("n_eval_examples has no effect with server_fraction=0; leave it out")


def _apart(*lists: list[Preference]) -> list[list[Preference]]:
    """Return lists of rows whose conversations are told apart over all lists together."""
    rows = iter(told_apart([row for rows in lists for row in rows]))
    return [list(islice(rows, len(each))) for each in lists]


def reading_of(config: Config, *, supervised: bool) -> Reading:
    """Return how the run's records become rows; a supervised loss reads chosen responses only."""
    return Reading(
        columns={known: theirs for known, theirs in asdict(config.columns).items() if theirs is not None},
        pairs_per_prompt=config.pairs_per_prompt,
        needs="prompts" if config.online.judge is not None else "imitated" if supervised else "pairs",
        loss=chosen("loss", dict(flat(asdict(config)))) or str(config.loss["_target_"]),
        holdout_by=config.holdout_by,
        tokenizer=config.model.tokenizer_name_or_path or config.model.name_or_path,
        hub=HubSettings(
            config.data_config, config.data_revision, config.train_split, config.test_split, config.cache_dir
        ),
    )


def _loaded(config: Config, reading: Reading) -> tuple[Loaded, Loaded, Loaded]:
    """Load the rows to train, to validate and to test on."""
    if not config.datasets:  # a server without data, which is allowed where clients have their own
        return Loaded([], {}), Loaded([], {}), Loaded([], {})
    if (kept := _kept.pop(_key(config, reading), None)) is not None:
        return kept
    found = load_splits(
        config.datasets,
        data_dir=config.data_dir,
        seed=config.seed,
        test_fraction=config.test_fraction,
        reading=reading,
        on_read=lambda split: steps.Count(f"{{done}} rows of the {split} split are read").reached,
    )
    return found["train"], found["validation"], found["test"]


def _owned(split: Split, *loaded: Loaded) -> OwnedRows:
    every = merged(loaded)
    return OwnedRows(split, dict(sorted(every.skipped.items())), every.unread, every.forms, every.remarks)


def _settings(config: Config) -> SplitSettings:
    return SplitSettings(
        seed=config.seed,
        use_small_dataset=config.use_small_dataset,
        n_train_examples=config.n_train_examples,
        server_fraction=config.server_fraction,
        client_eval_fraction=config.client_eval_fraction,
        n_eval_examples=config.n_eval_examples,
        n_test_examples=config.n_test_examples,
    )
