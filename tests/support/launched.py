"""Starts `main.py` or another program with several processes, and finds what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

import main

ROOT = Path(main.__file__).parent
SMALL = [
    *["client_num_in_total=2", "comm_round=1", "local_steps=2", "n_train_examples=40", "n_test_examples=8"],
    *["device=cpu", "optimizer=SGD", "lr=0.02", "cpu_matmul=mkl", "tensorboard.enabled=false", "output_dir=runs"],
]
SOON = 20  # seconds after a failure: processes are given 5 to end, and machines that run tests are slow


@dataclass(frozen=True)
class Ended:
    """The end of a run: exit code, output and processes left over."""

    folder: Path
    code: int
    out: str
    err: str
    left: list[int]  # its processes that still live

    @property
    def run(self) -> Path:
        assert self.code == 0, self.err
        (run,) = self.folder.glob("runs/*/*")
        return run

    def lines(self) -> list[dict[str, object]]:
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return sorted(map(json.loads, lines), key=lambda line: (line["who"], line["split"], line["round"]))


def start(
    folder: Path, program: Path, *arguments: str, popen: type[subprocess.Popen[bytes]] = subprocess.Popen
) -> subprocess.Popen[bytes]:
    """Start the program in its folder. It prints to files: a process left over would hold a pipe open.

    Args:
        folder: The folder; it is made if there is none.
        program: Its file.
        arguments: What is typed.
        popen: The class that starts the process; `Fork` saves the time of imports.
    """
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        return popen([sys.executable, program, *arguments], cwd=folder, env=environment, stdout=out, stderr=err)


def end(process: subprocess.Popen[bytes], folder: Path) -> Ended:
    """Wait for the program, list the processes it left and kill them."""
    try:
        code = process.wait(timeout=150)
        left = living(folder)
    finally:
        for pid in living(folder):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    return Ended(folder, code, (folder / "out").read_text(), (folder / "err").read_text(), left)


def living(folder: Path) -> list[int]:
    """Return the ids of the processes whose working folder is `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(entry / "cwd")) == folder.resolve():
                found.append(int(entry.name))
        except OSError:  # another user's, or just gone
            continue
    return found


def run_main(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
    GlobalHydra.instance().clear()
    try:
        return main.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
