"""The rows of a run, loaded as the configuration says and given to their owners."""

from collections import Counter
from typing import Literal, NamedTuple

from fed.config import components
from fed.config.schema import Config
from fed.data.divide import partition
from fed.data.partition import OwnData
from fed.data.rows import Loaded
from fed.data.splits import Split, SplitSettings, split_own, split_rows
from load_data import load, load_file


class OwnedRows(NamedTuple):
    """All rows of a run by owner, and the number of records left out while loading, by reason."""

    split: Split
    skipped: dict[str, int]


def shared_out(config: Config, given: frozenset[str]) -> OwnedRows:
    """Load the run's rows and give them to the server, the test and the clients.

    Raises:
        ValueError: If they cannot be read or shared out.
    """
    partitioner = components.create("partition", config.partition, given)
    settings = _settings(config)
    train, test = _loaded(config, "train"), _loaded(config, "test")
    if isinstance(partitioner, OwnData):
        own = [load_file(path) for path in partitioner.client_data]
        split = split_own(train.rows, test.rows, [client.rows for client in own], settings)
        return OwnedRows(split, _skipped(train, test, *own))
    if not hasattr(partitioner, "load_partition"):
        raise ValueError(
            f"partition._target_={config.partition['_target_']} makes something other than a partitioner: "
            f"{type(partitioner).__name__}; expected a class with dataset, num_partitions and load_partition"
        )
    split = split_rows(
        train.rows,
        test.rows,
        lambda rows: partition(rows, partitioner, config.client_num_in_total, config.seed),
        settings,
    )
    return OwnedRows(split, _skipped(train, test))


def one_clients(own: Loaded, config: Config) -> OwnedRows:
    """Return the rows of a process that knows one client's rows and no others."""
    return OwnedRows(split_own([], [], [own.rows], _settings(config)), own.skipped)


def _loaded(config: Config, split: Literal["train", "test"]) -> Loaded:
    if not config.datasets:  # a server without data, which is allowed where clients have their own
        return Loaded([], {})
    return load(
        config.datasets,
        split,
        data_dir=config.data_dir,
        seed=config.seed,
        cache_dir=config.cache_dir,
        test_fraction=config.test_fraction,
    )


def _skipped(*loaded: Loaded) -> dict[str, int]:
    return dict(sorted(sum((Counter(part.skipped) for part in loaded), Counter()).items()))


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
