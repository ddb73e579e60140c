"""Runs of `main.py` in processes of their own, which a test may kill, and everything that they leave behind."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import main
from fed.tracking.line_files import read_lines
from fed.tracking.run_files import MARGINS, METRICS, SAMPLES, TIMING
from support.forked import begin_quietly, fork

ROOT = Path(__file__).parents[2]
SMALL = [
    *["client_num_in_total=3", "comm_round=3", "n_train_examples=24", "batch_size=4", "n_test_examples=6"],
    *["num_threads=1", "output_dir=runs", "cache_dir=cache"],
]
LONGEST = 120.0  # seconds that a run may take


@dataclass(frozen=True)
class Ended:
    """The end of a run."""

    code: int  # negative: the signal that killed it
    text: str  # what it printed


def call(
    folder: Path,
    *arguments: str,
    during: Callable[[int], object] = lambda pid: None,
    before: Callable[[], object] = lambda: None,
) -> Ended:
    """Run `python main.py ...` in a forked process, in that folder.

    Args:
        folder: The working folder of the process.
        arguments: What is typed.
        during: Is given the process id once the process has begun.
        before: Is called in that process first.
    """
    log = folder / "log"

    def typed() -> int:
        os.chdir(folder)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = sys.stderr = open(out, "w")  # noqa: SIM115 (as long as the process)
        before()
        return _typed(arguments)

    pid = fork(typed)
    during(pid)
    return Ended(_wait(pid), log.read_text())


def _typed(arguments: Sequence[str]) -> int:
    sys.argv = ["main.py", *arguments]
    begin_quietly()
    try:
        code = main.main()
    except SystemExit as leaving:
        code = int(leaving.code or 0)
    except BaseException as error:
        print(f"traceback: {error!r}")
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _wait(pid: int) -> int:
    """Return the exit code of a process; kill it when it takes too long."""
    end = time.monotonic() + LONGEST
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"the run did not end within {LONGEST:.0f} s")
        time.sleep(0.005)


def launch(folder: Path, *arguments: str, during: Callable[[int], object] = lambda pid: None) -> Ended:
    """Run `python main.py ...` as a program of its own; runs of several processes need that."""
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen([sys.executable, ROOT / "main.py", *arguments], cwd=folder, stdout=out, stderr=out)
        try:
            during(process.pid)
            code = process.wait(LONGEST)
        finally:
            process.kill()
            process.wait()
    return Ended(code, log.read_text())


def only_run(folder: Path) -> Path | None:
    """Return the folder of the run in `folder`, or None if no run began."""
    runs = list(folder.glob("runs/*/*/config.yaml"))
    return runs[0].parent if runs else None


def outcome(run: Path) -> dict[str, Any]:
    """Return everything that a run leaves and that must not depend on whether it was cut off, by name."""
    files = (run / name for name in (METRICS, MARGINS, SAMPLES))
    found: dict[str, Any] = {path.name: path.read_bytes() for path in files if path.is_file()}
    found[TIMING] = [(row["round"], row["who"], row["pairs"]) for row in read_lines(run / TIMING)]
    found.update((str(path.relative_to(run)), path.read_bytes()) for path in (run / "policy").rglob("*.safetensors"))
    found["checkpoints"] = sorted(
        str(p.relative_to(run)) for p in (run / "checkpoints").rglob("*") if "round" in p.name
    )
    for folder in (run / "tensorboard").iterdir():
        (file,) = folder.iterdir()
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for tag in events.Tags()["scalars"]:
            found[f"{folder.name}/{tag}"] = [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["tensors"]:  # text
            found[f"{folder.name}/{tag}"] = [
                (event.step, event.tensor_proto.string_val) for event in events.Tensors(tag)
            ]
        found[f"{folder.name}/settings"] = sorted(events.summary_metadata)
    return found


def after(seconds: float, number: int, choose: Callable[[int], int] = lambda pid: pid) -> Callable[[int], None]:
    """Return a function that waits, then sends a signal to the process, or to the one that `choose` finds from it."""

    def send(pid: int) -> None:
        time.sleep(seconds)
        with suppress(ProcessLookupError, FileNotFoundError):
            os.kill(choose(pid), number)

    return send


def some_rank(rng: random.Random) -> Callable[[int], int]:
    """Return a function that draws the launcher itself or one of the processes it started."""

    def choose(pid: int) -> int:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return rng.choice([pid, *map(int, children)])

    return choose
