"""Data sets of the Hugging Face hub, read by its library `datasets`; whatever fails is told in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from fed.config.places import offline

Fields = dict[str, Any]


class HubSettings(NamedTuple):
    """Which version and which parts of a data set are read; the names are those of the keys."""

    data_config: str | None = None
    data_revision: str | None = None
    train_split: str | None = None  # None: train
    test_split: str | None = None  # None: test, if there is one
    cache_dir: str | None = None  # of the downloads; None: the library's default


def split_names(hub: str, settings: HubSettings) -> list[str]:
    """Return the names of the splits that a data set has.

    Raises:
        ValueError: If the hub or the data set cannot be read.
    """
    with _told(hub):
        import datasets  # takes seconds; files need none of it

        found = datasets.get_dataset_split_names(hub, settings.data_config, revision=settings.data_revision)
        return list(found)


def hub_rows(
    hub: str, split: str, settings: HubSettings, *, part: str | None = None, drawn: tuple[str, float, int] | None = None
) -> Iterator[Fields]:
    """Yield the rows of one split.

    Args:
        hub: The data set's name on the hub.
        split: The split.
        settings: The version and the cache.
        part: A folder of the data set; None: all.
        drawn: "train" or "test", the share to test on and the seed, to divide a split by rows; None: all rows.

    Raises:
        ValueError: If the hub or the data set cannot be read.
    """
    with _told(hub):
        import datasets

        how = {"name": settings.data_config, "revision": settings.data_revision, "data_dir": part}
        given = {key: value for key, value in how.items() if value is not None}
        table = datasets.load_dataset(hub, split=split, cache_dir=settings.cache_dir, **given)
        if drawn is not None:
            side, share, seed = drawn
            table = table.train_test_split(test_size=share, seed=seed)[side]
        yield from table


@contextmanager
def _told(hub: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # hub, disk and parser each raise exceptions of their own
        name, reason = offline(), (str(error) or repr(error)).splitlines()[0]
        way_out = "give data_dir=<folder or file>"
        raise ValueError(
            f"cannot download {hub} from the hub ({reason}); "
            f"{way_out if name is None else f'{name} is set: unset it, or {way_out}'}"
        ) from error
