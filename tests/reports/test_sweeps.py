"""Sweeps: the swept keys are found, means are worked out by hand, and any grid is drawn."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from fed.reports.runs import Run
from fed.reports.sweep_png import figure, mean_accuracy
from fed.reports.sweep_settings import best_first, settings, shown, swept_keys
from fed.reports.sweeps import draw, finished
from support.fabricated_sweeps import Make, made, table

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """`made`, each run in a folder of its own."""
    count = iter(range(1000))
    return lambda changes, **more: made(tmp_path / "runs" / f"run-{next(count):03}", changes, **more)


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


def test_means_and_standard_errors_are_those_worked_out_by_hand(make: Make, tmp_path: Path) -> None:
    """Accuracies 0.5, 0.6, 0.7: mean 0.6, sd 0.1, and 0.1 / sqrt(3) = 0.058; the loss is one minus them."""
    for temp, accuracies in ((0, (0.5, 0.6, 0.7)), (1, (0.8,))):
        for seed, accuracy in enumerate(accuracies):
            make({"temp": temp}, seed=seed, accuracy=accuracy)
    draw(tmp_path / "runs", tmp_path / "out")
    text = (tmp_path / "out" / "sweep.md").read_text()
    cells = "0.600 ± 0.058 | 1.200 ± 0.115 | 0.400 ± 0.058 | 1.800 ± 0.173 | - | 0.700 ± 0.058"
    assert f"| 0 | 3 | {cells} |" in text
    assert "| 1 | 1 | 0.800 | 1.600 | 0.200 | 2.400 | - | 0.900 |" in text
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
        "final_log_ratio": "0.75",
        "accuracy_at_best_validation": "",
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


def drawn(make: Make, grid: dict[str, list[Any]], accuracies: list[float]) -> Any:
    """Draw one run for each combination of the grid's values."""
    combinations: list[dict[str, Any]] = [{}]
    for key, values in grid.items():
        combinations = [{**one, key: value} for one in combinations for value in values]
    runs = [make(one, accuracy=a, typed=grid) for one, a in zip(combinations, accuracies, strict=True)]
    return figure(settings(runs, list(grid)), list(grid))


def test_colours_span_what_the_axes_span_and_small_differences_look_small(make: Make) -> None:
    axes = drawn(make, {"lr": [0.1, 0.2], "temp": [1, 2]}, [0.245, 0.246, 0.251, 0.252]).axes
    panels, (image,) = axes[:2], axes[2].images
    assert {panel.get_ylim() for panel in panels} == {image.get_clim()}
    low, high = image.get_clim()
    assert high - low == pytest.approx(0.02) and low < 0.245 and high > 0.252


def of_pairs(run: Run, examples: int) -> Run:
    """Let the run say that it had so many test pairs."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    text = "".join(json.dumps({**line, "examples": examples}) + "\n" for line in lines)
    (run.folder / "metrics.jsonl").write_text(text)
    return Run(run.folder)


def test_the_range_is_no_narrower_than_the_interval_of_a_run(make: Make) -> None:
    """With 99 pairs at 0.5 it is 1.96 / (99 + 1.96^2) sqrt(99 / 4 + 1.96^2 / 4) = 0.0966 to either side."""
    runs = [of_pairs(make({"temp": t}, accuracy=0.5 + s / 1000, seed=s), 99) for t in (1, 2) for s in (0, 1)]
    swept = settings(runs, ["temp"])
    low, high = figure(swept, ["temp"]).axes[0].get_ylim()
    assert high - low == pytest.approx(2 * 0.0966, abs=1e-4)
    assert mean_accuracy(swept[:1]) == pytest.approx((0.5005, 0.5, 0.501))


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("keys", [["temp"], ["temp", "lr", "alpha"]])
def test_bars_are_the_intervals_of_the_table_and_no_axis_passes_1(make: Make, keys: list[str], seeds: int) -> None:
    """Of 20 of 20 pairs the lower end is 20 / (20 + 1.96^2) = 0.839, whether one run says so or three."""
    combinations = [dict(zip(keys, values, strict=True)) for values in itertools.product((1, 2), repeat=len(keys))]
    runs = [of_pairs(make(one, accuracy=1.0, seed=seed), 20) for one in combinations for seed in range(seeds)]
    made = figure(settings(runs, keys), keys)
    panel = made.axes[0]
    low, high = panel.get_ylim()
    assert low < 0.839 and high == 1.0
    ends = [end for bar in panel.containers for segment in bar[2][0].get_segments() for end in segment[:, 1]]
    assert {round(float(end), 3) for end in ends} == {0.839, 1.0}
    assert "runs with the same accuracy: 95 % Wilson interval" in made.get_supxlabel()
    if len(keys) > 2:
        assert made.axes[-1].get_xlim()[1] == 1.0


def test_with_many_combinations_each_is_a_thin_line_and_only_their_mean_is_thick(make: Make) -> None:
    """Eight combinations of the other keys: 0.5 to 0.57 at lr=0.1, and 0.1 more at lr=0.2."""
    grid = {"lr": [0.1, 0.2], "temp": [1, 2], "batch_size": [8, 16], "loss.beta": [0.1, 0.5]}
    accuracies = [base + 0.01 * number for base in (0.5, 0.6) for number in range(8)]
    panel = drawn(make, grid, accuracies).axes[0]
    ends = sorted(tuple(line.get_ydata()) for line in panel.lines if line.get_linewidth() < 1)
    assert ends == [pytest.approx((0.5 + 0.01 * k, 0.6 + 0.01 * k)) for k in range(8)]
    (thick,) = [line for line in panel.lines if line.get_marker() == "o"]
    assert list(thick.get_ydata()) == pytest.approx([0.535, 0.635])


def test_with_more_than_two_keys_the_best_settings_are_named(make: Make, tmp_path: Path) -> None:
    grid = {"lr": [0.1, 0.2], "temp": [1, 2], "loss.beta": [0.1, 0.5]}
    ranking = drawn(make, grid, [0.5, 0.51, 0.52, 0.59, 0.54, 0.55, 0.56, 0.57]).axes[-1]
    names = [text.get_text() for text in ranking.get_yticklabels()]
    assert names[:2] == ["lr=0.1, temp=2, loss.beta=0.5", "lr=0.2, temp=2, loss.beta=0.5"] and len(names) == 8
    assert ranking.yaxis_inverted()
    draw(tmp_path / "runs", tmp_path / "out")
    text = (tmp_path / "out" / "sweep.md").read_text()
    assert "Highest accuracy: `lr=0.1 temp=2 loss.beta=0.5` with 0.590. Of 8 settings" in text


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ([1.0, 1.0, 1.0], "All 3 settings have the same accuracy: 1.000."),
        ([0.7, 0.9, 0.9], "Highest accuracy: `temp=1` and `temp=2`, which have the same, with 0.900. Of 3 settings"),
        ([0.9] * 6 + [0.1], "`temp=2`, `temp=3` and 2 more, which have the same, with 0.900. Of 7 settings"),
    ],
)
def test_settings_of_one_accuracy_are_all_named(make: Make, tmp_path: Path, accuracies: list[float], said: str) -> None:
    draw([make({"temp": temp}, accuracy=accuracy) for temp, accuracy in enumerate(accuracies)], tmp_path)
    assert said in (tmp_path / "sweep.md").read_text()


def test_settings_without_an_accuracy_are_not_ranked(make: Make) -> None:
    runs = [make({"temp": temp}, accuracy=0.1 * temp) for temp in (1, 2, 3)]
    lines = (runs[2].folder / "metrics.jsonl").read_text().splitlines()
    last = {**json.loads(lines[-1]), "accuracy": None}
    (runs[2].folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    found = settings([Run(run.folder) for run in runs], ["temp"])
    assert [setting.values for setting in best_first(found)] == [(2,), (1,)]


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
    with pytest.raises(ValueError, match="at least two finished runs"):
        draw(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_standard_error_of_one_run_is_unknown(make: Make) -> None:
    mean, low, high = mean_accuracy(settings([make({}, accuracy=0.3)], []))
    assert mean == 0.3 and math.isnan(low) and math.isnan(high)


def test_an_accuracy_of_one_run_has_wilsons_interval_and_validation_chooses_a_round(make: Make, tmp_path: Path) -> None:
    """Of 100 test pairs 80 are right at the end, and 90 in round 1, which is best on validation and on test pairs."""
    for temp, accuracy in ((0, 0.8), (1, 0.5)):
        run = make({"temp": temp}, accuracy=accuracy)
        path = run.folder / "metrics.jsonl"
        lines = [json.loads(line) | {"examples": 100} for line in path.read_text().splitlines()]
        lines += [line | {"split": "validation"} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw(tmp_path / "runs", tmp_path / "out")
    text = (tmp_path / "out" / "sweep.md").read_text()
    best = "0.900 [0.826, 0.945]"
    assert f"| 0 | 1 | 0.800 [0.711, 0.867] | 1.600 | 0.200 | 2.400 | {best} | {best} |" in text
    assert table(tmp_path / "out" / "sweep.csv")[0]["accuracy_at_best_validation"] == "0.9"
