"""Small runs with engine=ray."""

import os
import sys
from pathlib import Path

from support.deployment import ROOT
from support.forked import Fork

SETTINGS = {
    **{"client_num_in_total": 3, "clients_per_round": 2, "comm_round": 2, "num_threads": 1},
    **{"n_train_examples": 60, "n_test_examples": 16, "wire_dtype": "bfloat16"},
    **{"client_optimizer": "persist", "optimizer": "AdamW", "lr": 1e-3},
}
TYPED = [f"{key}={value}" for key, value in SETTINGS.items()]


def started(folder: Path, *arguments: str) -> Fork:
    """Start `python main.py engine=ray ...`."""
    command = [sys.executable, str(ROOT / "main.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return Fork(command, cwd=folder, env=environment, text=True, stdout=-1, stderr=-1)
