from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from fed.reports.curves import Series, curves, series_of
from fed.tracking.metrics import read_metrics
from support.trackers import make


def write_run(run_dir: Path, *, server: bool, rounds: int = 4, metrics: tuple[str, ...] = ("accuracy", "loss")) -> None:
    with make(run_dir) as tracker:
        for server_round in range(rounds):
            for client_id in (0, 1):
                values = {name: 0.5 + 0.1 * client_id + 0.01 * server_round for name in metrics}
                tracker.client(client_id, server_round, "validation" if server else "test", values)
            if server:
                for split in ("validation", "test"):
                    values = dict.fromkeys(metrics, 0.5 + 0.01 * server_round)
                    tracker.server(server_round, split, values | {"accuracy_low": 0.4, "accuracy_high": 0.7})


def drawn(run_dir: Path, metric: str) -> dict[str, Series]:
    return {series.split: series for series in series_of(read_metrics(run_dir), metric)}


@pytest.mark.parametrize(("server", "rounds"), [(True, 30), (False, 1)])
def test_curves_are_a_png_of_readable_size(tmp_path: Path, server: bool, rounds: int) -> None:
    write_run(tmp_path / "$exp_1$" / "run", server=server, rounds=rounds)
    path = curves(tmp_path / "$exp_1$" / "run")
    assert path == tmp_path / "$exp_1$" / "run" / "curves.png"
    height, width, _ = imread(path).shape
    assert 400 < height < 1200 and 800 < width < 1600
    assert 10_000 < path.stat().st_size < 500_000


def test_a_figure_has_a_row_less_when_two_panels_are_empty(tmp_path: Path) -> None:
    write_run(tmp_path / "two", server=True)
    write_run(tmp_path / "four", server=True, metrics=("accuracy", "loss", "margin", "log_ratio"))
    two, four = (imread(path) for name in ("two", "four") if (path := curves(tmp_path / name)))
    assert two.shape[0] < 0.7 * four.shape[0]


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    assert curves(tmp_path) is None
    with make(tmp_path) as tracker:
        tracker.server(1, "test", {"accuracy": float("nan"), "unknown": 0.5})
    assert curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()


def test_server_curves_have_the_interval_of_the_accuracy_as_band(tmp_path: Path) -> None:
    write_run(tmp_path, server=True)
    accuracy = drawn(tmp_path, "accuracy")["test"]
    assert accuracy.rounds.tolist() == [0, 1, 2, 3]
    assert accuracy.values == pytest.approx([0.5, 0.51, 0.52, 0.53])
    assert (accuracy.low.tolist(), accuracy.high.tolist()) == ([0.4] * 4, [0.7] * 4)
    assert accuracy.label == "test (band: 95 % interval)"
    assert np.isnan(drawn(tmp_path, "loss")["test"].low).all()


def test_without_a_server_the_clients_mean_and_deviation_are_drawn(tmp_path: Path) -> None:
    """Clients at 0.5 and 0.6: mean 0.55, standard deviation 0.1 / sqrt(2)."""
    write_run(tmp_path, server=False)
    accuracy = drawn(tmp_path, "accuracy")["test"]
    assert accuracy.values[0] == pytest.approx(0.55)
    assert accuracy.high - accuracy.values == pytest.approx([0.1 / np.sqrt(2)] * 4)
    assert accuracy.values - accuracy.low == pytest.approx([0.1 / np.sqrt(2)] * 4)


def test_a_tie_before_training_is_not_drawn_as_accuracy_zero(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        for server_round in (0, 1):
            tracker.server(server_round, "test", {"accuracy": 0.0, "loss": 0.7})
    assert drawn(tmp_path, "accuracy")["test"].rounds.tolist() == [1]
    assert drawn(tmp_path, "loss")["test"].rounds.tolist() == [0, 1]


def test_pairs_that_tie_at_the_first_step_are_left_out_of_the_training_curve(tmp_path: Path) -> None:
    """Each of two clients ties on 4 of 10 pairs and ranks 3 and 6 others rightly: 3 / 6 and 6 / 6, mean 0.75."""
    with make(tmp_path) as tracker:
        for client_id, right in ((0, 3), (1, 6)):
            tracker.client(client_id, 1, "train", {"accuracy": right / 10, "ties": 0.4, "examples": 10})
            tracker.client(client_id, 2, "train", {"accuracy": right / 10, "ties": 0.0, "examples": 10})
            tracker.client(client_id, 3, "train", {"accuracy": 0.0, "ties": 1.0, "examples": 10})
    train = drawn(tmp_path, "accuracy")["train"]
    assert train.rounds.tolist() == [1, 2]
    assert train.values == pytest.approx([0.75, 0.45])
    assert train.label == "train, mean of clients (band: standard deviation; 28 tied pairs left out)"
