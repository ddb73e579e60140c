"""A run on a disk that gets full says so in one line; with room again it ends as if nothing had happened."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.separate_runs import SMALL, call, only_run, outcome

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the outcome of a run that had room enough."""
    folder = tmp_path_factory.mktemp("whole")
    ended = call(folder, *SMALL)
    run = only_run(folder)
    assert ended.code == 0 and run is not None, ended.text
    return folder, outcome(run)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Mount a file system of as many kilobytes as the test's parameter says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def seem_empty() -> None:
    """Have the disk report much room, so that a run begins and finds the disk full later."""
    shutil.disk_usage = lambda path: SimpleNamespace(free=2**40)  # type: ignore[assignment, return-value]


@pytest.mark.parametrize("small_disk", [60, 300, 700, 1100, 1500, 2000, 2300, 2600], indirect=True)
def test_a_run_survives_a_full_disk(tmp_path: Path, whole: tuple[Path, dict[str, Any]], small_disk: Path) -> None:
    folder, expected = whole
    where = [f"cache_dir={folder / 'cache'}", f"output_dir={small_disk}/runs"]
    first = call(tmp_path, *SMALL, *where, before=seem_empty)
    said = [line for line in first.text.splitlines() if line.startswith(("error: ", "traceback: "))]
    assert first.code == 1 and len(said) == 1, first.text[-1500:]
    assert said[0].startswith("error: ") and "No space" in said[0], said
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    second = call(tmp_path, "resume=latest", f"output_dir={small_disk}/runs")
    assert second.code == 0, second.text[-1500:]
    run = only_run(small_disk)
    assert run is not None and outcome(run) == expected
