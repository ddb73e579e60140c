"""Run main.py in this process and measure it from within: `scale_run.py FILE KEY=VALUE...`; scale.py calls this.

Seconds are processor time, which other work on the machine does not distort, unless they are named wall.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Mark:
    """Time and memory of the process when a round began."""

    wall: float
    cpu: float
    memory: int  # resident bytes
    own: int  # resident bytes without pages of files, which the system takes back when it needs them


@dataclass
class Measured:
    """Everything that was measured by the end of the run."""

    imported: Mark
    rounds: dict[int, Mark] = field(default_factory=dict)  # by the round that begins; the last one ends the run
    setup: dict[str, float] = field(default_factory=dict)  # seconds before the first round, by phase
    peak: int = 0


def mark() -> Mark:
    """Return time and memory of the process now."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    memory, own = (int(status[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))
    return Mark(time.perf_counter(), time.process_time(), memory, own)


def main(target: Path, arguments: list[str]) -> int:
    """Run main.py, then write the measurements to `target`."""
    import main as command
    from fed.cpu.runtime import peak_memory
    from fed.grids.base import CountingGrid
    from run import data, pairs, references

    measured, spent = Measured(mark()), dict[str, float]()
    phases = {"loading": (data, "load_splits"), "partition": (data, "partition")}
    phases |= {"tokenizing": (pairs, "tokenize"), "reference": (references, "with_reference")}
    for phase, (module, name) in phases.items():
        setattr(module, name, _timed(getattr(module, name), phase, spent))
    begin = CountingGrid.begin

    def begins(grid: Any, server_round: int) -> None:
        begin(grid, server_round)
        measured.rounds[server_round] = mark()  # the last call counts: round 1 begins after the first evaluation
        if server_round == 1:
            measured.setup = dict(spent)

    CountingGrid.begin = begins  # type: ignore[method-assign, assignment]
    sys.argv = ["main.py", *arguments]
    code = command.main()
    measured.peak = peak_memory()
    target.write_text(json.dumps(asdict(measured)))
    return code


def _timed(function: Callable[..., Any], phase: str, spent: dict[str, float]) -> Callable[..., Any]:
    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        start = time.process_time()
        try:
            return function(*arguments, **named)
        finally:
            spent[phase] = spent.get(phase, 0.0) + time.process_time() - start

    return timed


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
