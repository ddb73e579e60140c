"""A run that is asked to stop at a random instant says so by its exit code, and resumes to the same bytes."""

import signal
from pathlib import Path

import pytest

from support.cut_off import KILLS, WholeRuns, check_resumes, random_of

pytestmark = pytest.mark.faults

STOPS = [
    *(("FeDPO", signal.SIGTERM, stop) for stop in range(KILLS)),
    *(("FedAdam", signal.SIGINT, stop) for stop in range(KILLS)),
    ("two processes that share a model", signal.SIGTERM, 0),
]


@pytest.mark.parametrize(("case", "number", "stop"), STOPS)
def test_a_stopped_run_resumes_to_the_same_bytes(
    tmp_path: Path, whole_runs: WholeRuns, case: str, number: int, stop: int
) -> None:
    check_resumes(case, number, whole_runs[case], tmp_path / "run", random_of("stop", case, stop))
