"""Measured choices of a machine, kept in a JSON file of `cache_dir`: a later run must compute in the same way."""

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from fed.files import make_private, write_whole

T = TypeVar("T")


def check_measured(figures: object, names: Iterable[str]) -> None:
    """Check that a choice's figures are a number above 0 for each of the names, or nothing.

    Raises:
        ValueError: If they are something else.
    """
    is_empty = figures == {}
    if not is_empty and not (
        isinstance(figures, dict)
        and figures.keys() >= {*names}
        and all(isinstance(value, int | float) and value > 0 for value in figures.values())
    ):
        raise ValueError(f"measured are {figures!r}; expected numbers by name")


def measured_once(file: Path, key: str, kind: type[T], measure: Callable[[], T]) -> T:
    """Return the choice that stands in the file under `key`; if there is none, the one measured now, after keeping it.

    Args:
        file: Is written whole; its choices of this kind stay in it.
        key: Names everything that the choice depends on.
        kind: The dataclass of the choice; it raises ValueError for values that are none.
        measure: Makes the choice.

    Raises:
        ValueError: If the file cannot be written.
    """
    known = _read(file, {item.name for item in fields(kind)})  # type: ignore[arg-type]
    with suppress(KeyError, ValueError):  # no choice, or one that is none
        return kind(**known[key])
    choice = measure()
    try:
        make_private(file.parent)
        write_whole(file, (json.dumps({**known, key: vars(choice)}, indent=2) + "\n").encode(), mode=0o600)
    except OSError as error:
        raise ValueError(f"cache_dir={file.parent} cannot be written: {error}; give another cache_dir") from error
    return choice


def _read(file: Path, names: set[str]) -> dict[str, Any]:
    """Read the choices of earlier runs; a missing, damaged or foreign file holds none."""
    try:
        found = json.loads(file.read_text())
        return {key: entry for key, entry in found.items() if entry.keys() == names}
    except Exception:  # whatever reading it raises
        return {}
