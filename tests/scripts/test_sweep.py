"""`scripts/sweep.py` draws the runs in several folders, and tells mistakes in one line."""

from pathlib import Path

import pytest

from scripts import sweep
from support.fabricated_sweeps import made


def test_the_script_draws_what_is_below_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, temp in (("a", 0), ("b", 1)):
        made(tmp_path / name / "deep" / "run", {"temp": temp})
    folders = [str(tmp_path / name) for name in ("a", "b")]
    assert sweep.main([*folders, f"out={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'sweep.png'}\n"
    assert sweep.main(folders) == 0 and (tmp_path / "a" / "sweep.png").is_file()


@pytest.mark.parametrize("typed", ["", "out=x", "nowhere", ". out=", ". out=a out=b", "."])
def test_a_mistake_with_the_script_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], typed: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sweep.main(typed.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
