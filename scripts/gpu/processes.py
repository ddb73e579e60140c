"""Carries out a part of `gpu_check` in a process of its own and ends it, with all that it started, in time."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from scripts.gpu.parts import ROOT, Part

ENTRY = ROOT / "scripts" / "gpu_part.py"
DONE, FAILED, LATE, SKIPPED = "done", "failed", "out of time", "skipped"
GRACE = 8.0  # seconds that a process has to end by itself


@dataclass(frozen=True)
class Outcome:
    """The end of a part."""

    part: Part
    status: str
    seconds: float
    reason: str  # why it is not done; "" if it is
    found: dict[str, Any]


def carry_out(part: Part, arguments: Sequence[str], seconds: float, result: Path, log: Path) -> Outcome:
    """Run a part for so many seconds at most.

    Args:
        part: What to run.
        arguments: The command line of `gpu_check`.
        seconds: It is ended after so many.
        result: The file for what it finds, which need not exist.
        log: Receives what it prints, behind what stands there.
    """
    command = [sys.executable, str(ENTRY), part.name, str(result), *arguments, f"seconds={max(1, int(seconds))}"]
    start = time.monotonic()
    with log.open("a+", encoding="utf-8") as out:
        out.write(f"\n== {part.name}: {part.meaning} ==\n")
        out.flush()
        begin = out.tell()
        pipes: Any = {"stdout": out, "stderr": subprocess.STDOUT, "env": _environment()}
        process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
        out.seek(begin)
        last = next((line.strip() for line in reversed(out.read().splitlines()) if line.strip()), "it said nothing")
    return _outcome(part, code, time.monotonic() - start, last, _read(result))


def _outcome(part: Part, code: int | None, seconds: float, last: str, found: dict[str, Any]) -> Outcome:
    if code is None:
        return Outcome(part, LATE, seconds, f"ended after {seconds:.0f} s", found)
    if code:
        why = last if code > 0 else f"ended by {signal.Signals(-code).name}; its last line: {last}"
        return Outcome(part, FAILED, seconds, why, found)
    if "skipped" in found:
        return Outcome(part, SKIPPED, seconds, found["skipped"], found)
    return Outcome(part, DONE, seconds, "", found)


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ask the process and all that it started to end, and kill those that have not after a while."""
    if process.poll() is None:
        own = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.send_signal(signal.SIGTERM)
        _, left = psutil.wait_procs(own, timeout=GRACE)
        for one in left:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()
    # The children of a process that ended by itself are known by its process group only.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    """Return the environment of a part: nothing is downloaded, one GPU, and this program's modules."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_DATASETS_OFFLINE": "1"}
    return {**os.environ, **offline, "TQDM_DISABLE": "1", "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": first}


def _read(result: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.read_text()) if result.is_file() else {}
    return found
