"""Draw finished runs by the settings in which they differ.

    python scripts/sweep.py FOLDER [FOLDER...] [out=DIR]

All finished runs in and below the folders are drawn: sweep.png, sweep.csv and sweep.md go to DIR, or to the first
folder. A `--multirun` does this by itself for its own runs.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from fed.reports.sweeps import draw, finished


def main(arguments: Sequence[str]) -> int:
    """Run the command line; exit code 0, or 2 with one line for a mistake of the user's."""
    try:
        folders, out = parse(arguments)
        print(draw(finished(folders), out))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def parse(arguments: Sequence[str]) -> tuple[list[Path], Path]:
    """Return the folders, and the folder for the results.

    Raises:
        ValueError: If there is no folder, or one does not exist.
    """
    outs = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    folders = [Path(argument) for argument in arguments if not argument.startswith("out=")]
    if not folders or len(outs) > 1 or "" in outs:
        raise ValueError("expected FOLDER [FOLDER...] [out=DIR], e.g. python scripts/sweep.py data/temp_sweep")
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder; give one that holds runs, e.g. data/temp_sweep, and out=DIR")
    return folders, Path(outs[0]) if outs else folders[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
