"""Measured choices of a machine, kept in a JSON file of `cache_dir`: a later run must compute in the same way."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fed.files import write_whole


def kept(file: Path, key: str, fields: frozenset[str]) -> dict[str, Any] | None:
    """Return the choice that stands in the file under `key` and has these fields; None if there is none."""
    return _read(file, fields).get(key)


def keep(file: Path, key: str, choice: Mapping[str, Any]) -> None:
    """Write a choice into the file, beside those with the same fields that stand there.

    Raises:
        ValueError: If the file cannot be written.
    """
    choices = {**_read(file, frozenset(choice)), key: dict(choice)}
    try:
        write_whole(file, (json.dumps(choices, indent=2) + "\n").encode())
    except OSError as error:
        raise ValueError(f"cache_dir={file.parent} cannot be written: {error}; give another cache_dir") from error


def _read(file: Path, fields: frozenset[str]) -> dict[str, Any]:
    """Read the choices of earlier runs; a missing, damaged or foreign file holds none."""
    try:
        found = json.loads(file.read_text())
        return {key: entry for key, entry in found.items() if entry.keys() == fields}
    except Exception:  # whatever reading it raises
        return {}
