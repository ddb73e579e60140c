"""The folder a run writes to, and the files that say what was run."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import torch

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "flwr",
    "flwr-datasets",
    "datasets",
    "hydra-core",
    "omegaconf",
    "numpy",
    "tensorboardX",
)


def check_cache_folder(cache_dir: str) -> None:
    """Make the folder, so that a run does not fail on it later.

    Raises:
        ValueError: If it cannot be written.
    """
    folder = Path(cache_dir) / "reference"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write {folder}")
    except OSError as error:
        raise ValueError(f"cache_dir={cache_dir} cannot be written: {error}; give another cache_dir") from error


def create_run_folder(output_dir: str, exp_name: str, config_yaml: str, device: torch.device, cpu: str) -> Path:
    """Make `output_dir/exp_name/date_time/` with `config.yaml` and `environment.json`; `cpu` goes there as it is.

    Raises:
        ValueError: If the folder cannot be written.
    """
    started = datetime.now()
    try:
        folder = _new_folder(Path(output_dir) / exp_name / started.strftime("%Y-%m-%d_%H-%M-%S"))
        (folder / "config.yaml").write_text(config_yaml)
        (folder / "environment.json").write_text(json.dumps(_environment(started, device, cpu), indent=2) + "\n")
    except OSError as error:
        raise ValueError(f"output_dir={output_dir} cannot be written: {error}; give another output_dir") from error
    return folder


def _new_folder(wanted: Path) -> Path:
    """The folder, or the next free one when two runs start within a second."""
    for number in range(1000):
        folder = wanted if number == 0 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(wanted)


def _environment(started: datetime, device: torch.device, cpu: str) -> dict[str, object]:
    return {
        "argv": sys.argv,
        "started": started.isoformat(timespec="seconds"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": cpu,
        "threads": torch.get_num_threads(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _commit() -> str | None:
    """The commit of this source tree, with "+changes" if files differ from it; None outside git."""
    here = Path(__file__).parent
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None


def write_whole(file: Path, content: bytes) -> None:
    """Write a file of a cache by way of a partial one, so that a reader never sees half of it.

    Raises:
        OSError: If it cannot be written.
    """
    partial = file.with_suffix(f".{os.getpid()}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(content)
    partial.replace(file)
