"""Arrays in files of `cache_dir`: what is costly to compute, and may be computed anew at any time."""

import io
from pathlib import Path

import numpy as np

from fed.errors import writing
from fed.tracking.run_folder import write_whole


def read_array(entry: Path) -> np.ndarray | None:
    """What `write_array` wrote there; None: nothing, or a file that cannot be read."""
    try:
        with entry.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except Exception:  # no entry, or whatever a damaged or foreign file makes numpy raise
        return None


def write_array(entry: Path, values: np.ndarray) -> None:
    """Keep an array; a reader never sees half of it.

    Raises:
        CannotWrite: If the disk refuses the file.
    """
    content = io.BytesIO()
    np.lib.format.write_array(content, values, allow_pickle=False)
    with writing(entry):
        write_whole(entry, content.getvalue())
