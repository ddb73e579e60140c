"""The pictures of one run: `curves.png` and `partition.png`."""

from pathlib import Path

from fed.reports.curves import curves
from fed.reports.partition_png import partition_picture


def pictures(run_dir: Path) -> Path | None:
    """Draw a run's pictures and return the path of its curves; None if there is nothing to draw in them."""
    partition_picture(run_dir)
    return curves(run_dir)
