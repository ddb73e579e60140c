"""The number of threads that a step of a small model takes least time with, measured.

Threads of small matrices wait for each other longer than they compute.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fed.cpu.choices import check_measured, measured_once
from fed.cpu.runtime import cpu_name

CLEARLY = 1.2  # more threads are taken if they are faster by more than this factor
REPEATS = 5
MILLI = 1e-3


@dataclass(frozen=True)
class ThreadChoice:
    """The threads in use, and the measured times of a step in milliseconds by number of threads."""

    threads: int
    milliseconds: dict[str, float]  # empty: not measured

    def __post_init__(self) -> None:
        if type(self.threads) is not int or self.threads < 1:
            raise ValueError(f"threads is {self.threads!r}; expected a whole number of at least 1")
        check_measured(self.milliseconds, [str(self.threads)])

    def __str__(self) -> str:
        text = f"{self.threads} thread{'s' * (self.threads > 1)}"
        others = [f"{ms:.3g} with {count}" for count, ms in self.milliseconds.items() if count != str(self.threads)]
        if not others:
            return text
        return f"{text} (a step in {self.milliseconds[str(self.threads)]:.3g} ms; {', '.join(others)})"


def choose_threads(step: Callable[[], None], most: int, *, cache_dir: str, what: str) -> ThreadChoice:
    """Choose and set the number of threads, from 1 to `most`, that `step` runs on from now on.

    Args:
        step: A step of the run.
        most: The CPUs that this process may use.
        cache_dir: Keeps measured choices: numbers of threads differ in the last bits, so later runs must choose alike.
        what: Names everything that the time of the step depends on but the machine.

    Raises:
        ValueError: If the cache cannot be written.
    """
    file, key = Path(cache_dir) / "threads.json", f"{cpu_name()}, {most} CPUs, torch {torch.__version__}, {what}"

    def best() -> ThreadChoice:
        times = _measured(step, most)
        return ThreadChoice(_fewest(times), {str(count): round(ms, 3) for count, ms in times.items()})

    choice = measured_once(file, key, ThreadChoice, best)
    torch.set_num_threads(choice.threads)
    return choice


def _fewest(milliseconds: dict[int, float]) -> int:
    """Return the fewest threads that are not clearly slower than the fastest number."""
    best = min(milliseconds.values())
    return min(count for count, ms in milliseconds.items() if ms <= CLEARLY * best)


def _measured(step: Callable[[], None], most: int) -> dict[int, float]:
    """Measure the fastest of a few steps for each number of threads; the numbers take turns."""
    counts = sorted({*(1 << power for power in range(most.bit_length()) if 1 << power <= most), most})
    best = dict.fromkeys(counts, float("inf"))
    for repeat in range(REPEATS + 1):
        for count in counts:
            torch.set_num_threads(count)
            began = time.perf_counter()
            step()
            if repeat:  # the first one warms up
                best[count] = min(best[count], (time.perf_counter() - began) / MILLI)
    return best
