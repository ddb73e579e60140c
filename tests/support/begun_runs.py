"""Folders of runs that have begun, and what is typed to resume them."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fed.config.checks import Request
from fed.config.groups import FaultSettings, ModelSettings
from fed.config.schema import Config

BEGAN = Config(
    lr=1e-3,
    comm_round=5,
    exp_name="mine",
    model=ModelSettings(name_or_path="somewhere", fsdp_policy_mp="bfloat16"),
    strategy={"_target_": "server.strategies.FeDPO", "temp": 0.5},
    loss={"_target_": "losses.preference.dpo", "beta": 0.1},
    partition={"_target_": "flwr_datasets.partitioner.IidPartitioner", "num_partitions": 10},
    datasets=["a", "b"],
    faults=FaultSettings(dropout_rate=0.25),
    alpha=None,
    num_threads=None,
    cpu_matmul="auto",
)
ENVIRONMENT: dict[str, Any] = {
    "threads": 3,
    "library": "onednn",
    "given": ["lr", "comm_round"],
    "python": "3.11.7",
    "device": "cpu",
    "processor": "some",
    "packages": {"torch": "2.13.0", "numpy": "2.4"},
}


def began(folder: Path, config: Config = BEGAN, **environment: Any) -> Path:
    """Make a folder as a run leaves it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
    (folder / "environment.json").write_text(json.dumps({**ENVIRONMENT, **environment}))
    return folder


def typed(resume: Path | str, **more: Any) -> Request:
    """Return what `python main.py resume=... key=value` gives."""
    return Request(replace(Config(), resume=str(resume), **more), frozenset({"resume", *more}))
