"""The rows of a run, loaded as the configuration says and given to their owners."""

from dataclasses import replace
from itertools import islice
from typing import NamedTuple, get_args

from fed.config import components
from fed.config.schema import Config
from fed.data.divide import partition
from fed.data.partition import OwnData
from fed.data.rows import Loaded, Preference, SplitName, merged, told_apart
from fed.data.splits import Split, SplitSettings, split_own, split_rows
from fed.tracking import steps
from load_data import load, load_file


class OwnedRows(NamedTuple):
    """All rows of a run by owner."""

    split: Split
    skipped: dict[str, int]  # records left out while loading, by reason
    unread: tuple[str, ...]  # fields of the records that nothing reads


def shared_out(config: Config, given: frozenset[str]) -> OwnedRows:
    """Load the run's rows and give them to the server, the test and the clients.

    Raises:
        ValueError: If they cannot be read or shared out.
    """
    partitioner = components.create("partition", config.partition, given)
    settings = _settings(config)
    train, validation, test = (_loaded(config, split) for split in get_args(SplitName))
    _check_validation(config, given, validation, has_own=isinstance(partitioner, OwnData))
    if isinstance(partitioner, OwnData):
        own = [load_file(path) for path in partitioner.client_data]
        server, unused = (validation.rows, len(train.rows)) if validation.rows else (train.rows, 0)
        split = split_own(server, test.rows, [client.rows for client in own], settings, unused)
        return _owned(split, train, validation, test, *own)
    if not hasattr(partitioner, "load_partition"):
        raise ValueError(
            f"partition._target_={config.partition['_target_']} makes something other than a partitioner: "
            f"{type(partitioner).__name__}; expected a class with dataset, num_partitions and load_partition"
        )
    train_rows, validation_rows, test_rows = _apart(train.rows, validation.rows, test.rows)
    split = split_rows(
        train_rows,
        validation_rows,
        test_rows,
        lambda rows: partition(rows, partitioner, config.client_num_in_total, config.seed),
        replace(settings, server_last=getattr(partitioner, "server_last", False)),
    )
    return _owned(split, train, validation, test)


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


def _loaded(config: Config, split: SplitName) -> Loaded:
    if not config.datasets:  # a server without data, which is allowed where clients have their own
        return Loaded([], {})
    return load(
        config.datasets,
        split,
        data_dir=config.data_dir,
        seed=config.seed,
        cache_dir=config.cache_dir,
        test_fraction=config.test_fraction,
        on_read=steps.Count(f"{{done}} rows of the {split} split are read").reached,
    )


def _owned(split: Split, *loaded: Loaded) -> OwnedRows:
    every = merged(loaded)
    return OwnedRows(split, dict(sorted(every.skipped.items())), every.unread)


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
