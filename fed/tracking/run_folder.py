"""The folder of a run, and the files in it that record the settings and the machine."""

import fcntl
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

import torch

from fed.cpu.runtime import cpu_name
from fed.files import make_private, write_whole
from fed.tracking.run_files import CONFIG, ENVIRONMENT, runs_of
from fed.tracking.versions import commit, packages

PATIENCE = 10.0  # seconds in which a killed process must be gone: Linux lets it finish its last write to the disk


def check_cache_folder(cache_dir: str) -> None:
    """Create the cache folder now, so that a run does not fail on it later.

    Raises:
        ValueError: If it cannot be written.
    """
    folder = Path(cache_dir) / "reference"
    try:
        make_private(folder.parent)
        make_private(folder)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"no permission to write {folder}")
    except OSError as error:
        raise ValueError(f"cache_dir={cache_dir} cannot be written: {error}; give another cache_dir") from error


def create_run_folder(
    output_dir: str, exp_name: str, config_yaml: str, device: torch.device, cpu: str, **more: object
) -> Path:
    """Create `output_dir/exp_name/date_time/` with `environment.json` and, last of all, `config.yaml`.

    `cpu` and `more` are written into `environment.json` unchanged.

    Raises:
        ValueError: If the folder cannot be written.
    """
    started = datetime.now()
    try:
        folder = _new_folder(Path(output_dir) / exp_name / started.strftime("%Y-%m-%d_%H-%M-%S"))
        environment = {**surroundings(device), "argv": _arguments(), "started": started.isoformat(timespec="seconds")}
        environment |= {"commit": commit(), "cpu": cpu, **more}
        write_whole(folder / ENVIRONMENT, (json.dumps(environment, indent=2) + "\n").encode())
        write_whole(folder / CONFIG, config_yaml.encode())
    except OSError as error:
        raise ValueError(f"output_dir={output_dir} cannot be written: {error}; give another output_dir") from error
    return folder


def _arguments() -> list[str]:
    """Return the command line without the token by which Flower's programs authenticate each other."""
    return ["..." if before == "--token" else word for before, word in itertools.pairwise(["", *sys.argv])]


def newest_run(output_dir: str, exp_name: str) -> Path:
    """Return the folder of the run of this experiment that was started last and is not in use.

    Raises:
        ValueError: If there is none, for `PATIENCE` seconds.
    """
    end = time.monotonic() + PATIENCE
    while not (free := [folder for folder in runs_of(output_dir, exp_name) if not _in_use(folder)]):
        if time.monotonic() > end:
            where = Path(output_dir, exp_name)
            raise ValueError(f"resume=latest finds no run that is not in use in {where}; give exp_name or its folder")
        time.sleep(0.1)
    return max(free, key=_started)


def _started(folder: Path) -> tuple[str, int]:
    """Return when a run was started, to the second as its `environment.json` says, then by the time of that file."""
    file = folder / ENVIRONMENT
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["started"]), file.stat().st_mtime_ns
    except (OSError, ValueError, KeyError, TypeError):
        return "", 0


def _in_use(folder: Path) -> bool:
    try:
        with locked(folder, patience=0.0):
            return False
    except OSError:  # no environment.json: whoever resumes it is told
        return False
    except ValueError:
        return True


@contextmanager
def locked(folder: Path, patience: float | None = None) -> Iterator[None]:
    """Lock the folder for this process; the system releases the lock however the process ends.

    Args:
        folder: The folder of a run.
        patience: Seconds to wait for another process to release it; None: `PATIENCE`.

    Raises:
        ValueError: If another process holds the lock.
    """
    end = time.monotonic() + (PATIENCE if patience is None else patience)
    with (folder / ENVIRONMENT).open("r+") as file:
        while not _took(file):
            if time.monotonic() >= end:
                raise ValueError(f"{folder} is in use by another process; wait until it has ended")
            time.sleep(0.1)
        yield


def _took(file: IO[str]) -> bool:
    """Return whether the lock on the file is ours now, or the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _new_folder(wanted: Path) -> Path:
    """Create the folder, or one with a number added when two runs start within a second."""
    for number in range(1000):
        folder = wanted if number == 0 else wanted.with_name(f"{wanted.name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(wanted)


def surroundings(device: torch.device) -> dict[str, object]:
    """Describe the machine and the package versions, on which the last bits of a run may depend."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": cpu_name(),
        "threads": torch.get_num_threads(),
        "packages": packages(),
    }
