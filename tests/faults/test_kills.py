"""A run that is killed at a random instant and resumed ends with the bytes of a run that nothing happened to."""

import signal
from pathlib import Path

import pytest

from support.cut_off import CASES, KILLS, WholeRuns, check_resumes, random_of

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("kill", range(KILLS))
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_resumes_to_the_same_bytes(tmp_path: Path, whole_runs: WholeRuns, case: str, kill: int) -> None:
    check_resumes(case, signal.SIGKILL, whole_runs[case], tmp_path / "run", random_of("kill", case, kill))
