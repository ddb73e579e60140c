"""Run several runs of main.py at a time, each in a process of its own, until one fails or a signal comes."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from scripts.compare_runs import ROOT, Wanted


class Runner:
    """Runs of a comparison, some at a time. The first that fails ends the others; they can be resumed later."""

    def __init__(self, at_a_time: int) -> None:
        self._at_a_time = at_a_time
        self._processes: list[subprocess.Popen[str]] = []
        self._ending = threading.Event()
        self._printing = threading.Lock()

    def run(self, wanted: Sequence[Wanted]) -> list[str]:
        """Run all that are not finished, in order, and return the names of those that failed.

        Raises:
            KeyboardInterrupt: With the number of the signal, once all runs have ended; they can be resumed.
        """
        left = sum((run := one.found()) is None or not run.finished for one in wanted)
        print(f"{len(wanted)} {'run' if len(wanted) == 1 else 'runs'}, {left} to do", flush=True)
        which = [f"run {number} of {len(wanted)}" for number in range(1, len(wanted) + 1)]
        with ThreadPoolExecutor(self._at_a_time) as pool, _interrupting():
            try:
                ended = list(pool.map(self._one, wanted, which))
            except KeyboardInterrupt:
                self._end(signal.SIGTERM)
                raise
        return [one.name for one, code in zip(wanted, ended, strict=True) if code]

    def _one(self, wanted: Wanted, which: str) -> int:
        run = wanted.found()
        if run is not None and run.finished:
            self._say(wanted, f"finished before: {run.folder}")
            return 0
        if self._ending.is_set():
            return 0
        command = wanted.command(run)
        self._say(wanted, f"{which}: python {' '.join(command)}")
        environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        arguments = [sys.executable, str(ROOT / command[0]), *command[1:]]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
        # In a session of its own it does not get the terminal's Ctrl-C besides the signal from here.
        with subprocess.Popen(arguments, start_new_session=True, **pipes) as process:
            self._processes.append(process)
            for line in _lines(process):
                self._say(wanted, line)
        if process.returncode and not self._ending.is_set():
            self._end(signal.SIGTERM)
            return process.returncode
        return 0

    def _end(self, number: signal.Signals) -> None:
        self._ending.set()
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)

    def _say(self, wanted: Wanted, text: str) -> None:
        with self._printing:
            print(f"[{wanted.name}] {text}", flush=True)


@contextmanager
def _interrupting() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP raise `KeyboardInterrupt` with their number.

    SIGINT does so even if a shell had it ignored; SIGHUP stays ignored under `nohup`.
    """

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from (line.rstrip() for line in process.stdout if line.strip())
