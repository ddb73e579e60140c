"""Runs of four methods with a script wherever foreign text may stand."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from fed.reports.runs import Method
from support.fabricated_runs import fabricate

EVIL = "<script>alert(1)</script>"
NAMES = ("fedpo", f"fedavg {EVIL}", "centralized", "local")
Row = dict[str, Any]


def make_methods(root: Path, seeds: Sequence[int] = (0, 1)) -> list[Method]:
    """Make four methods whose settings differ in lr and mode; two clients share two groups."""
    found = []
    for index, name in enumerate(NAMES):
        mode = name if name in ("centralized", "local") else "federated"
        runs = [fabricate(root / f"{index}-{seed}", mode=mode, seed=seed) for seed in seeds]
        for run in runs:
            set_groups(run.folder, {EVIL: 60, "b": 20}, {"b": 80}, {EVIL: 80}, {"": 80})
            change(run.folder / "samples.jsonl", lambda row: {**row, "policy": EVIL + row["policy"]})
            settings = yaml.safe_load((run.folder / "config.yaml").read_text())
            settings |= {"exp_name": EVIL, "output_dir": str(run.folder), "lr": f"1e-{index + 4}"}
            (run.folder / "config.yaml").write_text(yaml.safe_dump(settings))
        found.append(Method(name, runs))
    return found


def change(path: Path, edit: Callable[[Row], Row]) -> None:
    """Replace each object of a JSON or JSON lines file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(edit(row)) + "\n" for row in rows))


def set_groups(folder: Path, *groups: dict[str, int]) -> None:
    """Set how many pairs of which group each client holds."""
    clients = [{"num_rows": sum(held.values()), "groups": held} for held in groups]
    change(folder / "partition.json", lambda partition: {**partition, "clients": clients})
