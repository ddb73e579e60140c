"""Sweeps: what was swept is found, means are means, and the picture comes by itself after a `--multirun`."""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from fed.reports import multirun
from fed.reports.multirun import SweepPicture
from fed.reports.runs import Run
from fed.reports.sweep_png import mean_accuracy
from fed.reports.sweep_settings import settings, shown, swept_keys
from fed.reports.sweeps import draw, finished
from scripts import sweep
from support.command_line import CommandLine

PNG = b"\x89PNG\r\n\x1a\n"
DPO = {"_target_": "losses.preference.dpo", "beta": 0.1}
FEDPO = {"_target_": "server.strategies.FeDPO", "temp": 0.1, "decay": "cumulative"}


def made(
    folder: Path, changes: Mapping[str, Any], *, seed: int = 0, accuracy: float = 0.5, typed: Iterable[str] = ()
) -> Run:
    """Return a finished run of two rounds; the first one is better by 0.1."""
    folder.mkdir(parents=True)
    settings = {"seed": seed, "temp": 0.1, "lr": 1e-3, "loss": DPO, "strategy": FEDPO, "partition": {"seed": seed}}
    config = OmegaConf.create({**settings, "exp_name": folder.name, "mode": "federated", "lora": {"targets": ["q"]}})
    for key, value in changes.items():
        OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.save(config, folder / "config.yaml")
    (folder / "environment.json").write_text(json.dumps({"argv": ["main.py"], "given": list(typed)}))
    accuracies = [0.0, accuracy + 0.1, accuracy]
    lines = [
        {"round": r, "who": "server", "split": "test", "pairs": r, **_metrics(a)} for r, a in enumerate(accuracies)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"final": {"test": lines[-1]}}))
    return Run(folder)


def _metrics(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "margin": 2 * accuracy, "loss": 1 - accuracy, "kl": 3 * accuracy}


Make = Callable[..., Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`made`, each run in a folder of its own."""
    count = iter(range(1000))
    return lambda changes, **more: made(tmp_path / "runs" / f"run-{next(count):03}", changes, **more)


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# What was swept


def test_of_keys_that_always_change_together_the_shorter_is_shown(make: Make) -> None:
    runs = [make({"temp": temp, "strategy.temp": temp}, seed=seed) for temp in (0, 1.0) for seed in (0, 1)]
    assert swept_keys(runs) == ["temp"]


def test_seeds_and_places_are_not_swept_keys(make: Make) -> None:
    assert swept_keys([make({"output_dir": f"o{k}", "cache_dir": f"c{k}"}, seed=k) for k in range(3)]) == []


def test_of_what_a_strategys_file_brings_along_only_the_strategy_is_shown(make: Make) -> None:
    adam = {"strategy": {"_target_": "flwr.serverapp.strategy.FedAdam", "tau": 0.1, "temp": None}, "alpha": 0}
    average = {"strategy": {"_target_": "server.strategies.StreamingFedAvg", "temp": None}, "alpha": 0}
    fedpo = {"alpha": 1}
    assert swept_keys([make(changes, typed=["strategy"]) for changes in (adam, average, fedpo)]) == [
        "strategy._target_"
    ]


def test_two_files_with_one_class_differ_in_a_parameter_of_their_group(make: Make) -> None:
    published = {"strategy.decay": "constant", "alpha": 1, "reshuffle": False}
    runs = [make(changes, typed=["strategy"]) for changes in ({"alpha": 0, "reshuffle": True}, published)]
    assert swept_keys(runs) == ["strategy.decay"]


def test_typed_keys_are_all_shown_though_no_two_runs_are_alike_in_any(make: Make) -> None:
    """A random search draws such settings: each key follows from each other one."""
    drawn = [{"lr": 0.1 * k, "loss.beta": 1.0 - 0.1 * k, "loss.scale": k} for k in range(1, 4)]
    runs = [make(changes, typed=["lr"]) for changes in drawn]
    assert swept_keys(runs) == ["lr"]
    for run in runs:
        (run.folder / "environment.json").write_text(json.dumps({"argv": ["main.py", "loss.beta=x"], "given": ["lr"]}))
    assert swept_keys([Run(run.folder) for run in runs]) == ["lr", "loss.beta"]


def test_a_grid_of_untyped_keys_is_found_whole(make: Make) -> None:
    runs = [make({"lr": lr, "lora.targets": targets}) for lr in (0.1, 0.2) for targets in (["q"], ["q", "v"])]
    assert swept_keys(runs) == ["lr", "lora.targets"]
    assert [setting.values for setting in settings(runs, ["lr", "lora.targets"])] == [
        *[(0.1, "[q,v]"), (0.1, "[q]"), (0.2, "[q,v]"), (0.2, "[q]")]
    ]


def test_settings_are_in_order_of_size_and_of_equal_runs_the_newest_counts(make: Make) -> None:
    runs = [make({"temp": temp}, accuracy=accuracy) for temp, accuracy in ((10, 0.1), (9, 0.2), (None, 0.3), (10, 0.4))]
    found = settings(runs, ["temp"])
    assert [(setting.values, setting.final("accuracy")) for setting in found] == [
        *[((9,), [0.2]), ((10,), [0.4]), ((None,), [0.3])]
    ]


def test_values_are_shown_as_they_are_typed() -> None:
    pairs = [("lr", 1e-5), ("temp", 100.0), ("packing", True), ("alpha", None), ("strategy._target_", "flwr.a.Krum")]
    assert [shown(*pair) for pair in pairs] == ["1e-05", "100", "true", "null", "Krum"]


# What is written


def test_means_and_standard_errors_are_those_worked_out_by_hand(make: Make, tmp_path: Path) -> None:
    """Accuracies 0.5, 0.6, 0.7: mean 0.6, sd 0.1, and 0.1 / sqrt(3) = 0.058; the loss is one minus them."""
    for temp, accuracies in ((0, (0.5, 0.6, 0.7)), (1, (0.8,))):
        for seed, accuracy in enumerate(accuracies):
            make({"temp": temp}, seed=seed, accuracy=accuracy)
    draw(tmp_path / "runs", tmp_path / "out")
    text = (tmp_path / "out" / "sweep.md").read_text()
    cells = "0.600 ± 0.058 | 1.200 ± 0.115 | 0.400 ± 0.058 | 1.800 ± 0.173 | 0.700 ± 0.058"
    assert f"| 0 | 3 | {cells} |" in text
    assert "| 1 | 1 | 0.800 | 1.600 | 0.200 | 2.400 | 0.900 |" in text
    assert text.startswith("# temp: 4 runs\n")


def test_the_table_has_a_row_for_each_run(make: Make, tmp_path: Path) -> None:
    runs = [make({"temp": temp}, seed=seed, accuracy=0.25) for temp in (0, 0.5) for seed in (3, 4)]
    draw(runs, tmp_path)
    rows = table(tmp_path / "sweep.csv")
    assert [(row["temp"], row["seed"], row["run"]) for row in rows] == [
        (str(run.config["temp"]), str(run.seed), str(run.folder)) for run in runs
    ]
    assert {name: rows[0][name] for name in list(rows[0])[2:-1]} == {
        "final_accuracy": "0.25",
        "final_margin": "0.5",
        "final_loss": "0.75",
        "final_kl": "0.75",
        "best_accuracy": "0.35",
    }


GRIDS: dict[str, dict[str, list[Any]]] = {
    "decades with a zero": {"temp": [0, 0.1, 1, 10, 100]},
    "decades": {"lr": [1e-5, 1e-4, 1e-3]},
    "negative": {"temp": [-10, 0, 1]},
    "names": {"strategy._target_": ["a.FedAvg", "b.Krum"], "data_dir": ["x" * 60, "$x$_{", None]},
    "one line for each other value": {"lr": [0.1, 0.2, 0.3], "temp": [1, 2, 3, 4, 5, 6]},
    "a mean where lines would be too many": {"lr": [0.1, 0.2, 0.3], "temp": [1, 2], "packing": [True, False]},
    "seeds only": {"seed": [0, 1, 2]},
    "many values": {"lr": [0.01 * k for k in range(1, 21)]},
}


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_a_picture_is_drawn_of_any_grid(make: Make, tmp_path: Path, grid: dict[str, list[Any]]) -> None:
    """Warnings, of values that an axis cannot take, are errors in tests."""
    combinations: list[dict[str, Any]] = [{}]
    for key, values in grid.items():
        combinations = [{**one, key: value} for one in combinations for value in values]
    for number, changes in enumerate(combinations):
        make(changes, seed=changes.get("seed", 0), accuracy=0.5 + 0.001 * number, typed=grid)
    path = draw(tmp_path / "runs", tmp_path / "out")
    assert path.read_bytes().startswith(PNG) and path.stat().st_size > 10_000


def test_a_run_that_diverged_and_a_cell_without_a_run_are_left_empty(make: Make, tmp_path: Path) -> None:
    for lr, temp in ((0.1, 1), (0.1, 2), (0.2, 1)):
        make({"lr": lr, "temp": temp})
    diverged = make({"lr": 0.3, "temp": 1})
    lines = (diverged.folder / "metrics.jsonl").read_text().splitlines()
    last = {**json.loads(lines[-1]), "loss": None, "accuracy": None}
    (diverged.folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    assert draw(tmp_path / "runs", tmp_path / "out").read_bytes().startswith(PNG)
    assert "| 0.3 | 1 | 1 | - | 1.000 | - |" in (tmp_path / "out" / "sweep.md").read_text()
    assert table(tmp_path / "out" / "sweep.csv")[-1]["final_loss"] == ""


def test_one_run_is_no_sweep_and_unfinished_ones_do_not_count(make: Make, tmp_path: Path) -> None:
    make({"temp": 0})
    (make({"temp": 1}).folder / "summary.json").unlink()
    (tmp_path / "runs" / "no run").mkdir()
    (tmp_path / "runs" / "no run" / "summary.json").touch()
    assert [run.folder.name for run in finished([tmp_path, tmp_path / "runs"])] == ["run-000"]
    with pytest.raises(ValueError, match="two finished runs or more"):
        draw(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# After a multirun

SMALL = ("client_num_in_total=3", "comm_round=1", "n_train_examples=90", "n_test_examples=32", "num_threads=1")


def test_a_multirun_ends_with_a_picture_of_its_runs(command_line: CommandLine) -> None:
    result = command_line("--multirun", *SMALL, "debug=true", "temp=0,10", "seed=0,1")
    assert result.code == 0, result.err
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
        for metric in ("accuracy", "margin", "loss", "kl"):
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
    assert capsys.readouterr().err.startswith("no picture of the sweep: a sweep has two finished runs or more")


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


def test_the_standard_error_of_one_run_is_unknown(make: Make) -> None:
    mean, se = mean_accuracy(settings([make({}, accuracy=0.3)], []))
    assert mean == 0.3 and math.isnan(se)
