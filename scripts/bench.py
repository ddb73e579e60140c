"""Measure what the federation costs around the training steps, in time and memory: `make bench`.

Runs the demo with 2 and with 10 clients over the same pairs, each in a process of its own, and prints a table. Options:
`rounds=N` (default 2) and `json=FILE`.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
WORK = ("train", "evaluate", "reference")  # phases in which a model computes; all others are the federation


def main(arguments: list[str]) -> None:
    """Run, print, and write JSON if asked."""
    options = dict(argument.split("=", 1) for argument in arguments)
    rounds, target = int(options.pop("rounds", "2")), options.pop("json", None)
    if options:
        sys.exit(f"error: unknown option {', '.join(options)}; expected rounds=N and json=FILE")
    results = {clients: measure(clients, rounds) for clients in (2, 10)}
    print(f"{platform.processor() or platform.machine()}, {torch.__version__}, demo model, {rounds} rounds")
    print(f"{'clients':>7} {'wall s':>8} {'pairs/s':>8} {'federation s':>13} {'share':>7} {'peak GB':>8}")
    for clients, row in results.items():
        print(
            f"{clients:>7} {row['wall_seconds']:>8.1f} {row['pairs_per_second']:>8.0f} "
            f"{row['federation_seconds']:>13.2f} {row['federation_share']:>7.1%} {row['peak_memory_gb']:>8.3f}"
        )
    print(f"peak memory, 10 clients over 2: {results[10]['peak_memory_gb'] / results[2]['peak_memory_gb']:.3f}")
    if target is not None:
        Path(target).write_text(json.dumps(results, indent=2) + "\n")


def measure(clients: int, rounds: int) -> dict[str, Any]:
    """The summary of one demo run, with the share of its time that no model computed in."""
    with tempfile.TemporaryDirectory() as folder:
        given = [f"client_num_in_total={clients}", f"comm_round={rounds}"]
        folders = [f"output_dir={folder}/data", f"cache_dir={folder}/cache"]
        subprocess.run([sys.executable, "main.py", *given, *folders], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (summary,) = Path(folder).glob("data/*/*/summary.json")
        row: dict[str, Any] = json.loads(summary.read_text())
    row["federation_seconds"] = row["wall_seconds"] - sum(row["seconds"].get(phase, 0.0) for phase in WORK)
    row["federation_share"] = row["federation_seconds"] / row["wall_seconds"]
    return row


if __name__ == "__main__":
    main(sys.argv[1:])
