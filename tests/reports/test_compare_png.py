from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import FillBetweenPolyCollection
from matplotlib.figure import Figure
from matplotlib.image import imread

from fed.reports.compare_png import draw, figure
from fed.reports.runs import Method
from fed.reports.series import series
from support.fabricated_runs import fabricate, with_metrics

ROWS, COLUMNS = ("accuracy", "margin", "loss", "log_ratio"), ("pairs", "rounds", "seconds")


def method(folder: Path, name: str, *, seeds: Sequence[int] = (0, 1), mode: str = "federated", **how: Any) -> Method:
    """Two rounds of 100 pairs, for each seed."""
    how = {"rounds": 2, "pairs_per_round": 100, "num_pairs": 100, **how}
    return Method(name, [fabricate(folder / f"{name}-{seed}", mode=mode, seed=seed, **how) for seed in seeds])


def panel(drawn: Figure, metric: str, column: str) -> Any:
    return drawn.axes[ROWS.index(metric) * len(COLUMNS) + COLUMNS.index(column)]


def bands(axes: Any) -> list[dict[float, tuple[float, float]]]:
    """Return the lower and the upper edge of each band, by x."""
    found = []
    for band in axes.collections:
        assert isinstance(band, FillBetweenPolyCollection)
        points: dict[float, list[float]] = {}
        for x, y in band.get_paths()[0].vertices:
            points.setdefault(float(x), []).append(float(y))
        found.append({x: (min(ys), max(ys)) for x, ys in points.items()})
    return found


def test_lines_are_means_over_seeds_and_bands_their_standard_errors(tmp_path: Path):
    """Margins 1 and 3: 2 with sd sqrt(2), se 1. Margins 2 and 8: 5 and 3."""
    made = method(tmp_path, "a")
    runs = [with_metrics(made.runs[0], margin=[0, 1, 2]), with_metrics(made.runs[1], margin=[0, 3, 8])]
    axes = panel(figure([Method("a", runs)]), "margin", "pairs")
    [line] = axes.lines
    assert line.get_xydata().tolist() == [[0, 0], [100, 2], [200, 5]]
    [band] = bands(axes)
    assert band == {0: (0, 0), 100: pytest.approx((1, 3)), 200: pytest.approx((2, 8))}


def test_the_three_columns_show_the_same_values_over_pairs_rounds_and_seconds(tmp_path: Path):
    """In fabricated runs 12 s pass before training, and then 0.05 s for each pair."""
    drawn = figure([method(tmp_path, "a")])
    [pairs], [rounds], [seconds] = (panel(drawn, "loss", column).lines for column in COLUMNS)
    assert pairs.get_xdata().tolist() == [0, 100, 200]
    assert rounds.get_xdata().tolist() == [0, 1, 2]
    assert seconds.get_xdata().tolist() == pytest.approx([12, 17, 22])
    assert pairs.get_ydata().tolist() == rounds.get_ydata().tolist() == seconds.get_ydata().tolist()
    assert [axes.get_xlabel() for axes in drawn.axes[-3:]] == ["pairs trained", "round", "wall-clock time (s)"]


def test_minutes_stand_where_seconds_would_be_many(tmp_path: Path):
    """2 * 3600 * 0.05 s = 6 min, and 12 s before."""
    drawn = figure([method(tmp_path, "a", pairs_per_round=3600)])
    [line] = panel(drawn, "loss", "seconds").lines
    assert line.get_xdata().tolist() == pytest.approx([0.2, 3.2, 6.2])
    assert drawn.axes[-1].get_xlabel() == "wall-clock time (min)"


def test_accuracy_before_training_is_not_drawn_but_the_loss_is(tmp_path: Path):
    drawn = figure([method(tmp_path, "a")])
    assert panel(drawn, "accuracy", "rounds").lines[0].get_xdata().tolist() == [1, 2]
    assert panel(drawn, "loss", "rounds").lines[0].get_xdata().tolist() == [0, 1, 2]


def test_of_one_seed_only_accuracy_has_a_band_wilsons(tmp_path: Path):
    """Of 100 pairs 50 are right, then all: the second band has a width although a (1 - a) is 0."""
    made = method(tmp_path, "a", seeds=[0])
    run = with_metrics(
        made.runs[0], accuracy=[0, 0.5, 1], accuracy_low=[0, 0.404, 0.963], accuracy_high=[0.04, 0.596, 1]
    )
    drawn = figure([Method("a", [run])])
    [band] = bands(panel(drawn, "accuracy", "rounds"))
    assert band == {1: pytest.approx((0.404, 0.596)), 2: pytest.approx((0.963, 1))}
    assert not any(panel(drawn, metric, "rounds").collections for metric in ("margin", "loss", "log_ratio"))


def test_clients_that_train_alone_have_a_band_of_their_spread_besides(tmp_path: Path):
    """Losses 1 and 3 of two seeds: 2 with se 1; spreads over clients 0.2 and 0.4: 0.3."""
    made = method(tmp_path, "local", mode="local")
    runs = [
        with_metrics(made.runs[0], loss=[1, 1, 1], loss_sd=[0.2] * 3),
        with_metrics(made.runs[1], loss=[3, 3, 3], loss_sd=[0.4] * 3),
    ]
    spread, error = bands(panel(figure([Method("local", runs)]), "loss", "rounds"))
    assert spread == {r: pytest.approx((1.7, 2.3)) for r in range(3)}
    assert error == {r: pytest.approx((1, 3)) for r in range(3)}


def test_one_seed_of_clients_that_train_alone_has_only_their_spread(tmp_path: Path):
    made = method(tmp_path, "local", mode="local", seeds=[0])
    run = with_metrics(made.runs[0], accuracy=[0, 0.5, 0.5], accuracy_sd=[0, 0.1, 0.2])
    [band] = bands(panel(figure([Method("local", [run])]), "accuracy", "rounds"))
    assert band == {1: pytest.approx((0.4, 0.6)), 2: pytest.approx((0.3, 0.7))}


def test_a_single_round_has_an_error_bar_where_it_belongs(tmp_path: Path):
    """It may be painted beside its x, so that bars of several methods do not cover each other; its data stay."""
    made = [method(tmp_path, name, rounds=1, skill=skill) for name, skill in (("a", 0.2), ("b", 0.6))]
    axes = panel(figure(made), "accuracy", "pairs")
    for one, container in zip(made, axes.containers, strict=True):
        found = series(one, "accuracy")
        point, _, [bar] = container
        [[bottom, top]] = bar.get_segments()
        assert point.get_xydata().tolist() == [[100, found.values[0]]]
        assert (bottom[1], top[1]) == pytest.approx((found.lows[0], found.highs[0]))
    places = [container[0].get_transform().transform((100, 0))[0] for container in axes.containers]
    assert places[0] != places[1]


def test_a_round_that_is_not_finite_in_one_run_is_left_out(tmp_path: Path):
    made = method(tmp_path, "a")
    runs = [made.runs[0], with_metrics(made.runs[1], log_ratio=[0, None, 1])]
    assert series(Method("a", runs), "log_ratio").rounds.tolist() == [0, 2]


def test_a_round_that_one_run_was_not_evaluated_in_is_left_out(tmp_path: Path):
    made = method(tmp_path, "a")
    longer = fabricate(tmp_path / "longer", mode="federated", seed=7, rounds=5, pairs_per_round=100, num_pairs=100)
    assert series(Method("a", [*made.runs, longer]), "loss").rounds.tolist() == [0, 1, 2]


def test_without_times_there_is_no_column_for_them(tmp_path: Path):
    made = method(tmp_path, "a")
    for run in made.runs:
        (run.folder / "timing.jsonl").unlink()
    drawn = figure([made])
    assert [axes.get_xlabel() for axes in drawn.axes[-2:]] == ["pairs trained", "round"]
    assert len(drawn.axes) == 8


def test_a_metric_that_nobody_measured_has_no_row(tmp_path: Path):
    made = [with_metrics(run, margin=[None] * 3) for run in method(tmp_path, "a").runs]
    assert len(figure([Method("a", made)]).axes) == 9


def test_methods_differ_in_colour_and_in_dashes_or_marker(tmp_path: Path):
    made = [method(tmp_path, name, seeds=[0]) for name in "abcde"]
    lines = panel(figure(made), "loss", "rounds").lines
    assert len({line.get_color() for line in lines}) == 5
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) >= 4


def test_the_legend_names_methods_and_bands(tmp_path: Path):
    made = [method(tmp_path, "a $5"), method(tmp_path, "local", mode="local")]
    drawn = figure(made)
    [legend] = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a $5", "local"]
    assert legend.get_title().get_text().splitlines() == [
        "Lines: means of 2 seeds on their test pairs. Bands: ± standard error over seeds.",
        "local: means over clients that train alone. Pale band: ± standard deviation over them.",
    ]
    drawn.canvas.draw()  # one dollar sign begins no formula


def test_the_legend_of_one_seed_speaks_of_wilsons_interval(tmp_path: Path):
    [legend] = figure([method(tmp_path, "a", seeds=[0])]).legends
    assert (
        legend.get_title().get_text()
        == "Lines of one seed: on its test pairs. Bands: 95 % Wilson interval of accuracy."
    )


def test_the_legend_says_what_the_band_of_equal_seeds_is(tmp_path: Path):
    made = method(tmp_path, "a")
    equal = [with_metrics(run, accuracy=[0, 0.75, accuracy]) for run, accuracy in zip(made.runs, (0.5, 1), strict=True)]
    [legend] = figure([Method("a", equal)]).legends
    assert legend.get_title().get_text().splitlines() == [
        "Lines: means of 2 seeds on their test pairs. Bands: ± standard error over seeds.",
        "Where all seeds have the same accuracy: its 95 % Wilson interval.",
    ]


def test_the_file_is_a_png_of_readable_size(tmp_path: Path):
    draw([method(tmp_path, "a"), method(tmp_path, "local", mode="local")], tmp_path / "compare.png")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(tmp_path / "compare.png")
    assert pixels.shape[0] > 1000 and pixels.shape[1] > 1000
    assert np.ptp(pixels[..., :3]) > 0.5
