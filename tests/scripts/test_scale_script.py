"""`scripts/scale.py` measures a small federation."""

import json
from pathlib import Path

import pytest

from load_data import load
from scripts import demo_files, scale
from scripts.options import read, split


def test_it_measures_a_run_and_writes_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale.main(["clients=6", "rounds=2", "pairs=3", "share=0.5", f"json={tmp_path / 'found'}", "optimizer=SGD"])
    found = json.loads((tmp_path / "found").read_text())
    (row,) = found["rows"]
    assert found["settings"] == ["optimizer=SGD"] and (row["clients"], row["sampled"]) == (6, 3)
    assert {"loading", "partition", "tokenizing", "reference", "other"} == row["setup"].keys()
    assert 0 < row["round_seconds"] == pytest.approx(3 * row["seconds_per_client"])
    assert sum(row["setup"].values()) == pytest.approx(row["setup_seconds"])
    assert 1e8 < row["memory_imported"] < row["memory_before"] <= row["memory_peak"]
    assert row["sent"] == row["received"] == 3 * row["sent"] // 3 > 1e6
    assert row["checkpoint"] > row["sent"] // 3 and row["run_folder"] > row["checkpoint"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == scale.HEAD and printed[1].split()[:2] == ["6", "3"]


def test_every_dialogue_is_a_conversation_of_its_own(tmp_path: Path) -> None:
    scale.write_dialogues(tmp_path, 5000)
    sizes = {"train": 5000, "test": scale.TEST}
    for name, size in sizes.items():
        rows = load(["files"], name, data_dir=str(tmp_path), seed=0).rows  # type: ignore[arg-type]
        assert len({row.conversation for row in rows}) == len(rows) == size


def test_options_are_told_from_settings_of_the_run() -> None:
    own, settings = split(scale.Options, ["clients=5,7", "rounds=2", "client_optimizer=persist"])
    options = read(scale.Options, own)
    assert (options.clients, options.rounds, settings) == ([5, 7], 2, ["client_optimizer=persist"])


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("quick", "'quick' is not a setting; expected KEY=VALUE"),
        ("clients=few", "clients=few is of the wrong type; expected whole numbers"),
        ("clients=10,1", "clients=1 is too small; expected a whole number of at least 2"),
        ("rounds=1", "rounds=1 is too small"),
        ("share=2", "share=2.0 is out of range; expected a number above 0, at most 1"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(argument: str, told: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        scale.main([argument])
    assert str(stopped.value).startswith("error: ") and told in str(stopped.value)


def test_a_wrong_setting_of_the_run_is_told_once_and_is_the_exit_code(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        scale.main(["clients=2", "rounds=2", "pairs=3", "nonsense=1"])
    assert stopped.value.code == 2
    assert capfd.readouterr().err.count("error: unknown key nonsense") == 1


@pytest.mark.parametrize("typed", [[], ["--help"], ["pairs.jsonl", "nonsense=1"]])
def test_files_of_the_demo_are_written_under_names_only(typed: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="expected one or more names of files"):
        demo_files.main(typed)
    assert not list(tmp_path.iterdir())
