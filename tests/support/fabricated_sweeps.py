"""Folders of finished runs whose settings differ, made in a millisecond each."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fed.reports.runs import Run

Make = Callable[..., Run]
DPO = {"_target_": "losses.preference.dpo", "beta": 0.1}
FEDPO = {"_target_": "server.strategies.FeDPO", "temp": 0.1, "decay": "cumulative"}


def made(
    folder: Path, changes: Mapping[str, Any], *, seed: int = 0, accuracy: float = 0.5, typed: Iterable[str] = ()
) -> Run:
    """Return a finished run of two rounds; the first one is better by 0.1."""
    folder.mkdir(parents=True)
    settings = {"seed": seed, "temp": 0.1, "lr": 1e-3, "loss": DPO, "strategy": FEDPO, "partition": {"seed": seed}}
    config = OmegaConf.create({**settings, "exp_name": folder.name, "mode": "federated", "lora": {"targets": ["q"]}})
    for key, value in changes.items():
        OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.save(config, folder / "config.yaml")
    (folder / "environment.json").write_text(json.dumps({"argv": ["main.py"], "given": list(typed)}))
    accuracies = [0.0, accuracy + 0.1, accuracy]
    lines = [
        {"round": r, "who": "server", "split": "test", "pairs": r, **_metrics(a)} for r, a in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"final": {"test": lines[-1]}}))
    return Run(folder)


def _metrics(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "margin": 2 * accuracy, "loss": 1 - accuracy, "log_ratio": 3 * accuracy}


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
