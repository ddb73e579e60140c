import json
from pathlib import Path

import numpy as np
import pytest

from support.trackers import make, scalars


def test_nested_time_belongs_to_the_innermost_phase_only(tmp_path: Path, clock: list[float]) -> None:
    """1 s train, 2 s evaluate inside it, 4 s train again; 8 s outside any phase."""
    with make(tmp_path) as tracker:
        with tracker.phase("train"):
            clock[0] += 1
            with tracker.phase("evaluate"):
                clock[0] += 2
            clock[0] += 4
        clock[0] += 8
        report = tracker.summary()
    assert report["seconds"] == {"train": 5.0, "evaluate": 2.0}
    assert report["wall_seconds"] == 15.0


def test_a_phase_that_raises_is_still_counted_and_ended(tmp_path: Path, clock: list[float]) -> None:
    with make(tmp_path) as tracker:
        with pytest.raises(RuntimeError), tracker.phase("train"):
            clock[0] += 1
            raise RuntimeError
        clock[0] += 1
        assert tracker.summary()["seconds"] == {"train": 1.0}


def test_the_summary_has_the_last_and_the_best_line_of_each_split(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        for server_round, accuracy in ((0, 0.5), (1, 0.75), (2, 0.75), (3, 0.625)):
            tracker.server(server_round, "test", {"accuracy": accuracy, "loss": 0.5})
        tracker.client(0, 4, "test", {"accuracy": 1.0})
        report = tracker.summary()
    assert report["final"] == {"test": {"round": 3, "pairs": 0, "accuracy": 0.625, "loss": 0.5}}
    assert report["best"] == {"test": {"round": 1, "pairs": 0, "accuracy": 0.75, "loss": 0.5}}


def test_the_summary_has_the_test_line_of_the_round_that_validation_chose(tmp_path: Path) -> None:
    """Validation is best in rounds 2 and 3, of which 2 is the earlier; test would be best in round 1."""
    with make(tmp_path) as tracker:
        for server_round, validation, test in ((0, 0.9, 0.9), (1, 0.6, 0.8), (2, 0.7, 0.5), (3, 0.7, 0.75)):
            tracker.server(server_round, "validation", {"accuracy": validation})
            tracker.server(server_round, "test", {"accuracy": test})
        report = tracker.summary()
    assert [*report][:3] == ["final", "chosen", "best"]
    assert report["chosen"]["test"] == {"round": 2, "pairs": 0, "accuracy": 0.5}
    assert report["final"]["test"]["accuracy"] == 0.75


def test_the_summary_on_disk_is_the_one_returned_and_is_valid_json(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        tracker.server(1, "test", {"accuracy": float("nan"), "loss": 0.5})
        report = tracker.summary(mode="federated", peak_cuda_gb=np.float64(1.5), drift=[float("inf"), 1])
    assert json.loads((tmp_path / "summary.json").read_text()) == report
    assert (report["mode"], report["peak_cuda_gb"], report["drift"]) == ("federated", 1.5, [None, 1])
    assert report["final"]["test"]["accuracy"] is None
    assert 0.01 < report["peak_memory_gb"] < 1000


def test_the_summary_of_nothing_invents_nothing(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        report = tracker.summary()
    assert (report["final"], report["best"], report["seconds"], report["pairs"]) == ({}, {}, {}, 0)
    assert "pairs_per_second" not in report


def test_pairs_per_second_leaves_out_other_phases(tmp_path: Path, clock: list[float]) -> None:
    """100 pairs in 5 s of training, one of them before this process began; the 6 s were evaluation."""
    with make(tmp_path) as tracker:
        tracker.advance(40)
        tracker.spend({"train": 1.0})
        with tracker.phase("train"):
            clock[0] += 4
            tracker.advance(60)
        with tracker.phase("evaluate"):
            clock[0] += 6
        report = tracker.summary()
    assert (report["pairs"], report["pairs_per_second"]) == (100, 20.0)


def test_bytes_are_summed_in_the_summary_and_are_no_evaluation(tmp_path: Path) -> None:
    with make(tmp_path, tensorboard=True) as tracker:
        for server_round in (1, 2):
            tracker.communication(server_round, 100, 40)
            tracker.server(server_round, "test", {"accuracy": 0.5})
        report = tracker.summary()
    assert report["bytes"] == {"sent": 200, "received": 80} and report["final"].keys() == {"test"}
    assert scalars(tmp_path / "tensorboard" / "Server")["communication/bytes_received"] == [(1, 40.0), (2, 40.0)]
