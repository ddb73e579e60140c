"""The cost of the federation around the training steps: the demo with few and many clients over the same pairs."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = (2, 10, 100)
WORK = ("train", "evaluate", "reference")  # phases in which a model computes; all others are the federation


@dataclass(frozen=True)
class Federation:
    """The measurements of one demo run in a process of its own."""

    clients: int
    seconds_per_round: float
    pairs_per_second: float
    federation_seconds: float  # in which no model computed
    federation_share: float
    peak_memory_gb: float
    phases: dict[str, float] = field(default_factory=dict)  # seconds


def measure(clients: int, rounds: int, settings: Sequence[str] = ()) -> Federation:
    """Run the demo, or what the settings say, with so many clients and return its cost."""
    with tempfile.TemporaryDirectory() as folder:
        given = [f"client_num_in_total={clients}", f"comm_round={rounds}", *settings]
        folders = [f"output_dir={folder}/data", f"cache_dir={folder}/cache"]
        subprocess.run([sys.executable, "main.py", *given, *folders], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (summary,) = Path(folder).glob("data/*/*/summary.json")
        row: dict[str, Any] = json.loads(summary.read_text())
    wall = row["wall_seconds"]
    outside = wall - sum(row["seconds"].get(phase, 0.0) for phase in WORK)
    return Federation(
        clients,
        wall / rounds,
        row["pairs_per_second"],
        outside,
        outside / wall,
        row["peak_memory_gb"],
        row["seconds"],
    )


def table(rows: list[Federation], rounds: int) -> str:
    """Return the printed table of the rows."""
    lines = [f"The demo's federation, {rounds} round{'s' * (rounds > 1)}, the same pairs held by more and more clients"]
    lines.append(f"{'clients':>7} {'s/round':>8} {'pairs/s':>8} {'federation s':>13} {'share':>6} {'peak GB':>8}")
    for row in rows:
        lines.append(
            f"{row.clients:>7} {row.seconds_per_round:>8.2f} {row.pairs_per_second:>8.0f} "
            f"{row.federation_seconds:>13.2f} {row.federation_share:>6.1%} {row.peak_memory_gb:>8.3f}"
        )
    first, last = rows[0], rows[-1]
    ratio = last.peak_memory_gb / first.peak_memory_gb
    lines.append(f"peak memory, {last.clients} clients over {first.clients}: {ratio:.3f}")
    return "\n".join(lines)


def as_json(rows: list[Federation]) -> dict[str, dict[str, float]]:
    """Return the rows by number of clients."""
    return {str(row.clients): asdict(row) for row in rows}
