"""The resident memory of a long run does not creep."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fed.tracking.metrics import read_metrics
from support.cut_off import ROUNDS
from support.separate_runs import launch, only_run

pytestmark = pytest.mark.faults

EARLY = 10  # rounds
SECONDS = 300 + 6.0 * ROUNDS  # that the run may take


def test_memory_stays_within_five_percent_of_that_after_the_tenth_round(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    found: dict[int, int] = {}

    def watch(pid: int) -> None:
        end = time.monotonic() + SECONDS
        while (memory := resident(pid)) is not None:
            assert time.monotonic() < end, f"the run did not end within {SECONDS:.0f} s"
            run = only_run(tmp_path)
            lines = read_metrics(run) if run is not None else []
            found[max((line.server_round for line in lines if line.who == "server"), default=-1)] = memory
            time.sleep(0.5)

    typed = ["client_num_in_total=5", "n_train_examples=100", "n_test_examples=64", f"comm_round={ROUNDS}"]
    ended = launch(tmp_path, *typed, "num_threads=1", "output_dir=runs", during=watch)
    assert ended.code == 0, ended.text[-500:]
    early = max((memory for number, memory in found.items() if number <= EARLY), default=0)
    late = max((memory for number, memory in found.items() if number > EARLY), default=0)
    told = f"{ROUNDS} rounds: {early / 1e6:.0f} MB after {EARLY} rounds, then at most {late / 1e6:.0f} MB"
    record_property("told", told)
    assert 0 < late <= 1.05 * early, told


def resident(pid: int) -> int | None:
    """Return the bytes of main memory that a process has, or None once it has ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return 1024 * int(line.split()[1])
    return None
