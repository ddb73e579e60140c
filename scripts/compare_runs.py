"""The runs of a comparison: which are finished, which go on, which are to be started; `scripts/compare.py` uses it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fed.config import composing, effect
from fed.config.schema import CONFIG_DIR, every_key
from fed.config.scopes import of_role
from fed.reports.runs import Run
from fed.tracking.run_files import CONFIG

ROOT = Path(__file__).resolve().parent.parent
# Keys that say where a run is kept, or that a resumed run may have otherwise: they do not make it another run.
NOT_WHAT = of_role("place", "upkeep")
OF_FEDERATION = ("strategy", "privacy", "faults")  # groups that training without a federation has no use for


@dataclass(frozen=True)
class Wanted:
    """A run that the comparison needs."""

    method: str
    seed: int
    arguments: tuple[str, ...]  # of main.py, without where it is kept
    folder: Path  # where runs of this method and seed are kept

    @property
    def name(self) -> str:
        """Of its folder, and before each line it prints."""
        return self.folder.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings that the run will have.

        Raises:
            ValueError, HydraException, OmegaConfBaseException: If they are refused.
        """
        return _what(asdict(composing.request(self.arguments).config))

    def found(self) -> Run | None:
        """The newest finished run with these settings, or else the newest that was cut off."""
        runs = [Run(path.parent) for path in sorted(self.folder.glob(f"*/{CONFIG}"))]
        same = [run for run in runs if _has(run, self.config)]
        return max(same, key=lambda run: (run.finished, run.folder.name), default=None)

    def command(self, run: Run | None) -> list[str]:
        """What starts the run, or has one that was cut off go on."""
        if run is not None:
            return ["main.py", f"resume={run.folder}"]
        return ["main.py", *self.arguments, f"output_dir={self.folder.parent}", f"exp_name={self.name}"]


def method_arguments(mode: str, strategy: str, variant: Sequence[str], typed: Sequence[str]) -> list[str]:
    """What of the typed settings a method has a use for, with its own.

    Args:
        mode: federated, centralized or local.
        strategy: A file of config/strategy/; without a federation of no use.
        variant: Settings of this method only; they win.
        typed: Settings of all methods.
    """
    own = {_key(argument) for argument in variant}
    kept = [argument for argument in typed if _key(argument) not in own and reads(mode, strategy, _key(argument))]
    chosen = [f"strategy={strategy}"] if mode == "federated" else []
    return [f"mode={mode}", *chosen, *kept, *variant]


def reads(mode: str, strategy: str, key: str) -> bool:
    """Whether a method has a use for a key."""
    known = every_key().get(key)
    if mode != "federated":
        idle = known is not None and any(idle.key == "mode" and idle.applies(mode) for idle in known.idle)
        federated = known is not None and known.scope.federated_only
        return not (idle or federated or key.split(".")[0] in OF_FEDERATION)
    text = _strategy_file(strategy)
    if key.startswith("strategy."):
        return re.search(rf"^\s*{re.escape(key.removeprefix('strategy.'))}:", text, re.MULTILINE) is not None
    group, read = (known and known.read_by) or ("", "")
    return group != "strategy" or effect.reads(text, read)


def _strategy_file(strategy: str) -> str:
    path = CONFIG_DIR / "strategy" / f"{strategy}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""  # composing says what there is


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def _has(run: Run, config: dict[str, Any]) -> bool:
    try:
        return _what(run.config) == config
    except Exception:  # whatever a damaged file makes the reader raise
        return False


def _what(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in NOT_WHAT}


class Runner:
    """Runs what is missing, some runs at a time, each in a process of its own.

    The first that fails ends the others, which can go on later.
    """

    def __init__(self, at_a_time: int) -> None:
        self._at_a_time = at_a_time
        self._processes: list[subprocess.Popen[str]] = []
        self._ending = threading.Event()
        self._printing = threading.Lock()

    def run(self, wanted: Sequence[Wanted]) -> list[str]:
        """All that are not finished, in order; the names of those that failed.

        Raises:
            KeyboardInterrupt: With the number of the signal that asked for it, when all have ended; they can go on.
        """
        with ThreadPoolExecutor(self._at_a_time) as pool, _interrupting():
            try:
                ended = list(pool.map(self._one, wanted))
            except KeyboardInterrupt:
                self._end(signal.SIGTERM)
                raise
        return [one.name for one, code in zip(wanted, ended, strict=True) if code]

    def _one(self, wanted: Wanted) -> int:
        run = wanted.found()
        if run is not None and run.finished:
            self._say(wanted, f"finished before: {run.folder}")
            return 0
        if self._ending.is_set():
            return 0
        command = wanted.command(run)
        self._say(wanted, "python " + " ".join(command))
        environment = {**os.environ, "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"}
        arguments = [sys.executable, str(ROOT / command[0]), *command[1:]]
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
        # In a session of its own: of Ctrl-C it hears from here, once.
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
    """Inside, SIGINT and SIGTERM are `KeyboardInterrupt` with their number, also where a shell had SIGINT ignored."""

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    yield from (line.rstrip() for line in process.stdout if line.strip())
