"""A `--multirun` says which values each run has, and ends with a picture of its own runs."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from omegaconf import OmegaConf

from fed.config.schema import CONFIG_DIR
from fed.reports import multirun
from fed.reports.multirun import SweepPicture
from fed.reports.runs import Run
from support.command_line import CommandLine
from support.fabricated_sweeps import made, table

PNG = b"\x89PNG\r\n\x1a\n"
SMALL = ("client_num_in_total=3", "comm_round=1", "n_train_examples=90", "n_test_examples=32", "num_threads=1")


def test_a_multirun_ends_with_a_picture_of_its_runs(command_line: CommandLine) -> None:
    result = command_line("--multirun", *SMALL, "debug=true", "temp=0,10", "seed=0,1")
    assert result.code == 0, result.err
    said = [line for line in result.out.splitlines() if line.startswith("run ")]
    values = ("temp=0 seed=0", "temp=0 seed=1", "temp=10 seed=0", "temp=10 seed=1")
    assert said == [f"run {k + 1} of 4: {value}" for k, value in enumerate(values)]
    assert result.out.startswith(said[0]), "before anything is loaded"
    (folder,) = result.folder.glob("runs/fedpo/sweep_*")
    assert f"sweep of 4 runs: {folder.relative_to(result.folder) / 'sweep.png'}\n" in result.out
    assert {path.name for path in folder.iterdir()} == {"sweep.png", "sweep.csv", "sweep.md"}
    assert (folder / "sweep.png").read_bytes().startswith(PNG)
    assert "| temp | runs |" in (folder / "sweep.md").read_text()
    rows = table(folder / "sweep.csv")
    assert [(row["temp"], row["seed"]) for row in rows] == [("0.0", "0"), ("0.0", "1"), ("10.0", "0"), ("10.0", "1")]
    assert {result.folder / row["run"] for row in rows} == set(result.runs)
    for row in rows:
        summary = json.loads((result.folder / row["run"] / "summary.json").read_text())
        for metric in ("accuracy", "margin", "loss", "log_ratio"):
            assert float(row[f"final_{metric}"]) == summary["final"]["test"][metric]
        assert float(row["best_accuracy"]) == summary["best"]["test"]["accuracy"]


def test_a_sweep_that_fails_keeps_its_exit_code(command_line: CommandLine) -> None:
    result = command_line("--multirun", *SMALL, "debug=true", "lr=1e-3,-1")
    assert result.code == 2
    assert result.err == "error: lr=-1.0 is out of range; expected more than 0\n"
    assert [path.name for path in (result.folder / "runs" / "fedpo").iterdir()] == [result.runs[0].name]


def test_a_single_run_makes_no_sweep(command_line: CommandLine) -> None:
    result = command_line("--multirun", *SMALL, "debug=true")
    assert result.code == 0 and result.run and not list(result.folder.glob("runs/*/sweep_*"))
    assert "run 1 of" not in result.out


def test_a_presets_values_are_counted_unless_others_are_typed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = SweepPicture()
    config = job(place, "a", "temp=5", "lr=1e-3,1e-2,1e-1")
    config.hydra.sweeper = {"params": {"temp": "0,1", "seed": "range(0,2)"}}
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        callback.on_multirun_start(config)
    one = job(place, "a", "temp=5", "seed=1", "lr=0.01")
    one.hydra.job = {"num": 4}
    callback.on_job_start(one)
    assert capsys.readouterr().out == "run 5 of 6: seed=1 lr=0.01\n"


ARGUMENTS = ["--multirun", "temp=0,1"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the jobs below keep their runs."""
    monkeypatch.setattr(multirun.sys, "argv", ["main.py", *ARGUMENTS])
    return tmp_path


def job(place: Path, name: str, *overrides: str) -> Any:
    return OmegaConf.create(
        {"output_dir": str(place), "exp_name": name, "hydra": {"overrides": {"task": list(overrides)}}}
    )


def started(run: Run, *argv: str) -> None:
    (run.folder / "environment.json").write_text(json.dumps({"argv": ["main.py", *argv], "given": ["temp"]}))


def test_the_picture_is_of_the_runs_of_this_sweep_only(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started(made(place / "a" / "1-old", {"temp": 5}), *ARGUMENTS)
    callback = SweepPicture()
    callback.on_job_start(job(place, "a", "temp=0"))
    started(made(place / "a" / "2-own", {"temp": 0}), *ARGUMENTS)
    callback.on_job_start(job(place, "a", "temp=1"))
    started(made(place / "a" / "3-others", {"temp": 7}), "--multirun", "temp=6,7")
    started(made(place / "a" / "4-of-processes", {"temp": 1}), "temp=1", "hydra.mode=RUN")
    (place / "a" / "5-empty").mkdir()
    callback.on_multirun_end(job(place, "a"))
    (folder,) = place.glob("a/sweep_*")
    assert [row["temp"] for row in table(folder / "sweep.csv")] == ["0", "1"]
    assert capsys.readouterr().out == f"sweep of 2 runs: {folder / 'sweep.png'}\n"


def test_a_sweep_of_places_finds_its_runs(place: Path) -> None:
    callback = SweepPicture()
    for number, (name, temp) in enumerate((("a", 0), ("b", 1))):
        callback.on_job_start(job(place / f"o{number}", name, f"exp_name={name}"))
        started(made(place / f"o{number}" / name / "run", {"temp": temp}), *ARGUMENTS)
    callback.on_multirun_end(job(place, "fedpo"))
    assert len(table(next(place.glob("o0/a/sweep_*/sweep.csv")))) == 2


def test_runs_that_differ_in_nothing_are_told_not_drawn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callback = SweepPicture()
    for name in ("a", "b"):
        callback.on_job_start(job(place, name))
        started(made(place / name / "run", {}), *ARGUMENTS)
    callback.on_multirun_end(job(place, "a"))
    assert capsys.readouterr().err.startswith("no picture of the sweep: a sweep needs at least two finished runs")
