from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fed.tracking.metrics import read_metrics
from support.trackers import lines_of, make, rows, scalars


def test_a_line_has_the_four_keys_of_the_contract_and_then_the_metrics(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        tracker.server(0, "validation", {"accuracy": 0.5})
        tracker.advance(32)
        tracker.advance(10)
        tracker.client(3, 1, "train", {"loss": 0.25, "examples": 7})
    assert rows(tmp_path) == [
        {"round": 0, "who": "server", "split": "validation", "pairs": 0, "accuracy": 0.5},
        {"round": 1, "who": "client-3", "split": "train", "pairs": 42, "loss": 0.25, "examples": 7},
    ]
    assert list(rows(tmp_path)[0])[:4] == ["round", "who", "split", "pairs"]


def test_a_line_can_be_read_before_the_tracker_is_closed(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        tracker.server(1, "test", {"accuracy": 0.5})
        assert len(rows(tmp_path)) == 1


def test_nan_and_infinity_are_written_as_null(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        tracker.server(1, "test", {"loss": float("nan"), "log_ratio": float("inf"), "margin": np.float32("-inf")})
    assert [rows(tmp_path)[0][name] for name in ("loss", "log_ratio", "margin")] == [None, None, None]


def test_numpy_numbers_become_plain_numbers(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        tracker.server(1, "test", {"accuracy": np.float32(0.5), "ties": np.int64(3), "loss": np.array(2.0)})
    assert {name: rows(tmp_path)[0][name] for name in ("accuracy", "ties", "loss")} == {
        "accuracy": 0.5,
        "ties": 3,
        "loss": 2.0,
    }


def test_a_second_tracker_appends(tmp_path: Path) -> None:
    for server_round in (1, 2):
        with make(tmp_path) as tracker:
            tracker.pairs = 100
            tracker.server(server_round, "test", {"accuracy": 0.5})
    assert [(row["round"], row["pairs"]) for row in rows(tmp_path)] == [(1, 100), (2, 100)]


def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        for server_round in (1, 2):
            tracker.server(server_round, "test", {"accuracy": 0.5})
    file = tmp_path / "metrics.jsonl"
    file.write_text(file.read_text()[:-5])
    assert [line.server_round for line in read_metrics(tmp_path)] == [1]


@pytest.mark.parametrize("tensorboard", [False, True])
def test_a_tracker_continues_where_another_was_after_a_round(tmp_path: Path, tensorboard: bool) -> None:
    """The second tracker removes, from every file, what the first wrote after its state was taken, and newer files."""
    first = make(tmp_path, tensorboard=tensorboard)
    with first:
        with first.phase("train"):
            first.advance(40)
        first.update(1, "train", {"lr": 0.5}, step=1)
        first.server(1, "test", {"accuracy": 0.5})
        state = first.state_dict()
        first.advance(7)
        first.update(1, "train", {"lr": 0.5}, step=2)
        first.update(2, "train", {"lr": 0.5}, step=1)
        first.server(2, "test", {"accuracy": 0.9})
    with make(tmp_path, tensorboard=tensorboard) as tracker:
        tracker.load_state_dict(state)
        tracker.advance(2)
        tracker.update(1, "train", {"lr": 0.25}, step=2)
        tracker.server(2, "test", {"accuracy": 0.6})
        report = tracker.summary()
    assert [(row["round"], row["pairs"], row["accuracy"]) for row in rows(tmp_path)] == [(1, 40, 0.5), (2, 42, 0.6)]
    assert report["pairs"] == 42 and report["seconds"]["train"] > 0
    if tensorboard:
        folders = tmp_path / "tensorboard"
        assert sorted(len(list(folder.iterdir())) for folder in folders.iterdir()) == [0, 1, 1]
        assert scalars(folders / "Client-1") == {"lr": [(1, 0.5), (2, 0.25)]}
        assert scalars(folders / "Server")["test/accuracy"] == [(1, 0.5), (2, pytest.approx(0.6))]


def test_a_tracker_that_starts_over_leaves_nothing_of_another(tmp_path: Path) -> None:
    for accuracy in (0.25, 0.75):
        with make(tmp_path, tensorboard=True) as tracker:
            tracker.start_over()
            tracker.server(1, "test", {"accuracy": accuracy})
    assert [row["accuracy"] for row in rows(tmp_path)] == [0.75]
    assert scalars(tmp_path / "tensorboard" / "Server")["test/accuracy"] == [(1, 0.75)]


def test_a_failure_is_a_line_with_its_reason_and_counted_by_client(tmp_path: Path) -> None:
    out = StringIO()
    with make(tmp_path, tensorboard=True, console=Console(file=out, width=200)) as tracker:
        tracker.failed(3, 1, "out of memory", "Traceback\nMemoryError")
        tracker.failed(3, 1, "again", "")
        tracker.clients_done(1)
        tracker.failed(4, 2, "late", "")
        tracker.clients_done(2)
        report = tracker.summary()
    assert [(row["round"], row["who"], row["split"], row["reason"]) for row in rows(tmp_path)] == [
        (1, "client-3", "failure", "out of memory"),
        (1, "client-3", "failure", "again"),
        (2, "client-4", "failure", "late"),
    ]
    assert report["failures"] == {"client-3": 2, "client-4": 1}
    assert scalars(tmp_path / "tensorboard" / "Server") == {"clients/failed": [(1, 2.0), (2, 1.0)]}
    assert "client-3 is left out: out of memory" in out.getvalue()
    assert (tmp_path / "failures.log").read_text() == "round 1, client-3: Traceback\nMemoryError\n"


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    tracker = make(tmp_path, tensorboard=True)
    tracker.server(1, "test", {"accuracy": 0.5})
    tracker.close()
    tracker.close()


def test_margins_keep_their_signs_and_seven_digits(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        tracker.evaluated(3, [0.0, -1e-30, 1.23456789, float("nan")])
        tracker.evaluated(3, [0.5], who="client-2")
        tracker.evaluated(4)
    assert lines_of(tmp_path / "margins.jsonl") == [
        {"round": 3, "who": "server", "split": "test", "margins": [0.0, -1e-30, 1.234568, None]},
        {"round": 3, "who": "client-2", "split": "test", "margins": [0.5]},
    ]


def test_the_time_of_each_evaluation_continues_after_a_resume(tmp_path: Path, clock: list[float]) -> None:
    with make(tmp_path) as tracker:
        tracker.advance(8)
        clock[0] += 5
        tracker.evaluated(1)
        state = tracker.state_dict()
        tracker.evaluated(2)
    clock[0] += 1000
    with make(tmp_path) as tracker:
        tracker.load_state_dict(state)
        clock[0] += 2
        tracker.evaluated(2)
    assert lines_of(tmp_path / "timing.jsonl") == [
        {"round": 1, "who": "server", "pairs": 8, "wall_seconds": 5.0},
        {"round": 2, "who": "server", "pairs": 8, "wall_seconds": 7.0},
    ]


def test_the_mean_over_clients_that_train_alone_counts_their_own_pairs_only(tmp_path: Path) -> None:
    """Client 0 trains 10 pairs a round, client 1 then 6: after one round together 16, after two 32."""
    with make(tmp_path, tensorboard=True) as tracker:
        for client, pairs, accuracies in ((0, 10, (0.0, 0.5, 0.6)), (1, 6, (0.0, 0.7, 1.0))):
            for server_round, accuracy in enumerate(accuracies):
                tracker.advance(pairs if server_round else 0)
                tracker.client(
                    client, server_round, "test", {"accuracy": accuracy, "accuracy_low": 0.1, "accuracy_high": 0.9}
                )
        tracker.everyone()
        report = tracker.summary()
    lines = [line for line in read_metrics(tmp_path) if line.who == "clients"]
    assert [line.pairs for line in lines] == [0, 16, 32]
    assert [line.metrics["accuracy"] for line in lines] == pytest.approx([0.0, 0.6, 0.8])
    assert [line.metrics["accuracy_sd"] for line in lines] == pytest.approx([0.0, 0.02**0.5, 0.08**0.5])
    assert all(line.metrics.keys() == {"accuracy", "accuracy_sd"} for line in lines)
    assert report["final"]["test"]["accuracy"] == pytest.approx(0.8) and report["best"]["test"]["round"] == 2
    found = scalars(tmp_path / "tensorboard" / "Server")["test/accuracy"]
    assert found == [(0, 0.0), (1, pytest.approx(0.6)), (2, pytest.approx(0.8))]
