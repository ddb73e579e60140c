"""Write the demo's training pairs, a file per client: `python scripts/demo_files.py a.jsonl b.jsonl`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from load_data import load

PAIRS = 40  # of each client
FIELDS = ("prompt", "chosen", "rejected", "group")


def main(paths: list[str]) -> None:
    """Write the files; no two hold the same pair.

    Raises:
        SystemExit: If no file is named, or an option is given.
    """
    if not paths or any(path.startswith("-") or "=" in path for path in paths):
        sys.exit(f"error: {' '.join(paths) or 'nothing'} is given; expected one or more names of files")
    rows = load(["demo"], "train", data_dir=None, seed=0).rows
    for number, path in enumerate(paths):
        own = rows[number * PAIRS : (number + 1) * PAIRS]
        lines = (json.dumps({name: asdict(row)[name] for name in FIELDS}) for row in own)
        Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
