"""`make faults`: runs are killed, stopped, damaged and starved; the last line says how often each went well."""

from pathlib import PurePath

import pytest
from pytest import TerminalReporter

from support.cut_off import SEED, WholeRuns

# What a test of each file counts.
FIGURES = {
    "test_kills.py": "killed runs resumed to the same bytes",
    "test_stops.py": "stopped runs resumed to the same bytes",
    "test_damage.py": "damaged checkpoints found, named and repaired",
    "test_stranger.py": "attacks on a real SuperLink that ended as promised",
    "test_engines.py": "failures of Flower's engines survived",
    "test_full_disks.py": "full disks survived",
    "test_typed_inputs.py": "bad inputs refused",
    "test_memory.py": "long runs with flat memory",
}


@pytest.fixture(scope="session")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> WholeRuns:
    """Return the runs that nothing happens to, by case."""
    return WholeRuns(tmp_path_factory.mktemp("whole"))


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print how often each subject was tried and how often it went well."""
    told = []
    for report in (*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")):
        for name, value in report.user_properties:
            if name == "told":
                terminalreporter.write_line(str(value))
    for file, counted in FIGURES.items():
        well, failed, broken, skipped = (
            sum(PurePath(report.nodeid.partition("::")[0]).name == file for report in terminalreporter.getreports(kind))
            for kind in ("passed", "failed", "error", "skipped")
        )
        if tried := well + failed + broken:
            told.append(f"{well} of {tried} {counted}")
        elif skipped:
            told.append(f"{counted}: not tried")
    if told:
        terminalreporter.write_line(f"{'; '.join(told)}; seed {SEED}")
