import json
import sys
import time
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fed.reports import curves as curves_module
from fed.reports.curves import curves
from fed.tracking import event_files, progress
from fed.tracking.metrics import read_metrics
from fed.tracking.tracker import Tracker


def quiet() -> Console:
    return Console(file=StringIO(), width=40)


def make(run_dir: Path, *, console: Console | None = None, tensorboard: bool = False, rounds: int = 2) -> Tracker:
    return Tracker(run_dir, tensorboard=tensorboard, num_rounds=rounds, clients_per_round=2, console=console or quiet())


def rows(run_dir: Path) -> list[dict[str, object]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read (step, value) pairs by tag, with TensorBoard itself, which verifies the checksums."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def open_files(folder: Path) -> int:
    """Count the files below the folder that this process has open."""
    links = [descriptor.readlink() for descriptor in Path("/proc/self/fd").iterdir() if descriptor.is_symlink()]
    return sum(link.is_relative_to(folder) for link in links)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a clock that stands still until a test moves `clock[0]`."""
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


# --- metrics.jsonl ---


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
        tracker.server(1, "test", {"loss": float("nan"), "kl": float("inf"), "margin": np.float32("-inf")})
    assert [rows(tmp_path)[0][name] for name in ("loss", "kl", "margin")] == [None, None, None]


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


# --- TensorBoard ---


def test_the_server_folder_holds_the_tags_by_round(tmp_path: Path) -> None:
    with make(tmp_path, tensorboard=True) as tracker:
        for server_round, accuracy in ((0, 0.0), (1, 0.5), (2, 0.75)):
            tracker.server(server_round, "validation", {"accuracy": accuracy, "loss": 0.25})
            tracker.server(server_round, "test", {"accuracy": 1.0})
    found = scalars(tmp_path / "tensorboard" / "Server")
    by_round = [(0, 0.0), (1, 0.5), (2, 0.75)]
    assert found == {
        "avg_acc/server": by_round,
        "validation/accuracy": by_round,
        "validation/loss": [(0, 0.25), (1, 0.25), (2, 0.25)],
        "test/accuracy": [(0, 1.0), (1, 1.0), (2, 1.0)],
    }


def test_the_clients_mean_is_over_this_rounds_validation_accuracies_only(tmp_path: Path) -> None:
    """Round 1: (0.5 + 1) / 2 = 0.75. Round 2: client 7 alone, 0.25."""
    with make(tmp_path, tensorboard=True) as tracker:
        tracker.client(0, 1, "validation", {"accuracy": 0.5})
        tracker.client(0, 1, "train", {"accuracy": 0.125})
        tracker.client(7, 1, "validation", {"accuracy": 1.0})
        tracker.clients_done(1)
        tracker.client(7, 2, "validation", {"accuracy": 0.25})
        tracker.clients_done(2)
        tracker.clients_done(3)
    assert scalars(tmp_path / "tensorboard" / "Server") == {
        "acc/client-0": [(1, 0.5)],
        "acc/client-7": [(1, 1.0), (2, 0.25)],
        "avg_acc/client": [(1, 0.75), (2, 0.25)],
        "clients/failed": [(1, 0.0), (2, 0.0), (3, 0.0)],
    }


def test_updates_go_to_the_clients_own_folder_by_update_count(tmp_path: Path) -> None:
    with make(tmp_path, tensorboard=True) as tracker:
        tracker.update(4, "train", {"loss/train": 0.5, "counters/examples": np.int64(8)}, step=1)
        tracker.update(4, "train", {"loss/train": 0.25, "counters/examples": 16}, step=2)
        tracker.update(5, "eval", {"loss/eval": 1.0}, step=1)
    folder = tmp_path / "tensorboard"
    assert scalars(folder / "Client-4") == {
        "loss/train": [(1, 0.5), (2, 0.25)],
        "counters/examples": [(1, 8.0), (2, 16.0)],
    }
    assert scalars(folder / "Client-5") == {"loss/eval": [(1, 1.0)]}


def test_evicted_event_files_lose_nothing_when_their_client_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_files, "MAX_OPEN_EVENT_FILES", 2)
    with make(tmp_path, tensorboard=True) as tracker:
        for step in (1, 2, 3):
            for client_id in range(4):
                tracker.update(client_id, "train", {"loss/train": client_id + step / 4}, step=step)
                assert open_files(tmp_path / "tensorboard") <= 2
    for client_id in range(4):
        folder = tmp_path / "tensorboard" / f"Client-{client_id}"
        assert scalars(folder) == {"loss/train": [(step, client_id + step / 4) for step in (1, 2, 3)]}
        assert len(list(folder.iterdir())) == 1


def test_two_trackers_within_one_second_keep_both_their_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)
    for step in (1, 2):
        with make(tmp_path, tensorboard=True) as tracker:
            tracker.update(0, "train", {"grad_norm": 0.5}, step=step)
    assert scalars(tmp_path / "tensorboard" / "Client-0") == {"grad_norm": [(1, 0.5), (2, 0.5)]}


def test_client_curves_are_on_disk_after_the_flush_interval(tmp_path: Path, clock: list[float]) -> None:
    with make(tmp_path, tensorboard=True) as tracker:
        tracker.update(0, "train", {"grad_norm": 1.0}, step=1)  # the first call flushes
        tracker.update(0, "train", {"grad_norm": 2.0}, step=2)
        folder = tmp_path / "tensorboard" / "Client-0"
        assert [step for step, _ in scalars(folder)["grad_norm"]] == [1]
        clock[0] += event_files.FLUSH_SECONDS
        tracker.update(0, "train", {"grad_norm": 3.0}, step=3)
        assert [step for step, _ in scalars(folder)["grad_norm"]] == [1, 2, 3]


def test_without_tensorboard_there_are_only_the_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboardX", "tensorboardX.proto.event_pb2"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would raise
    with make(tmp_path) as tracker:
        tracker.update(0, "train", {"loss/train": 1.0}, step=1)
        tracker.client(0, 1, "validation", {"accuracy": 0.5})
        tracker.clients_done(1)
        tracker.server(1, "validation", {"accuracy": 0.5})
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


# --- phases and summary ---


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


# --- console ---


def play(tracker: Tracker, clock: list[float], rounds: int = 2) -> None:
    """Two clients of 100 pairs a round at 50 pairs/s, and 1 s of evaluation: 5 s a round."""
    for server_round in range(1, rounds + 1):
        for client_id in (0, 1):
            tracker.start_client(server_round, client_id, 100)
            for _ in range(4):
                with tracker.phase("train"):
                    clock[0] += 0.5
                    tracker.advance(25)
            tracker.client(client_id, server_round, "validation", {"accuracy": 0.5 + client_id / 4})
        tracker.clients_done(server_round)
        clock[0] += 1
        tracker.server(server_round, "validation", {"accuracy": 0.8125})
        tracker.server(server_round, "test", {"accuracy": 0.79, "accuracy_se": 0.018})


def test_a_pipe_gets_one_unbroken_line_per_round(tmp_path: Path, clock: list[float]) -> None:
    """Round 1 took 5 s, so does round 2; nothing is left after round 2."""
    output = StringIO()
    with make(tmp_path, console=Console(file=output, width=40)) as tracker:
        tracker.server(0, "validation", {"loss": 0.6931})
        play(tracker, clock)
    figures = "validation accuracy 0.812  test accuracy 0.790 ± 0.018  clients' validation accuracy 0.625  50 pairs/s"
    lines = output.getvalue().splitlines()
    assert lines[0] == "round 0/2  validation loss 0.693  elapsed 0:00"
    assert lines[1].split("  ")[0] == "round 1/2"
    assert set(figures.split("  ")) <= set(lines[1].split("  "))
    assert lines[1].endswith("50 pairs/s  elapsed 0:05  left 0:05")
    assert lines[2].endswith("50 pairs/s  elapsed 0:10  left 0:00")
    assert len(lines) == 3


def test_time_left_counts_from_the_round_a_run_resumed_at(tmp_path: Path, clock: list[float]) -> None:
    """The only round of this process, the 9th of 10, took 2 x 2.5 s."""
    output = StringIO()
    with make(tmp_path, console=Console(file=output), rounds=10) as tracker:
        for client_id in (0, 1):
            tracker.start_client(9, client_id, 10)
            clock[0] += 2.5
            tracker.advance(10)
        tracker.clients_done(9)
    assert output.getvalue() == "round 9/10  elapsed 0:05  left 0:05\n"


def test_time_left_is_right_where_a_client_is_heard_of_when_it_is_done(tmp_path: Path, clock: list[float]) -> None:
    """The first of four visits took 10 s."""
    output = StringIO()
    with make(tmp_path, console=Console(file=output), rounds=2) as tracker:
        tracker.server(0, "test", {"accuracy": 0.5})
        tracker.end_round()
        clock[0] += 10
        tracker.start_client(1, 0, 8)
        tracker.advance(8)
        tracker.failed(1, 1, "out of memory", "")
        tracker.end_round()
    assert output.getvalue().splitlines()[-1] == "round 1/2  elapsed 0:10  left 0:30"


def test_time_left_is_right_when_clients_train_one_after_the_other(tmp_path: Path, clock: list[float]) -> None:
    """Two clients, each alone through both rounds: 4 visits of 10 s."""
    output = StringIO()
    with make(tmp_path, console=Console(file=output)) as tracker:
        for client_id in (0, 1):
            for server_round in (1, 2):
                tracker.start_client(server_round, client_id, 10)
                clock[0] += 10
                tracker.advance(10)
                tracker.clients_done(server_round)
                tracker.client(client_id, server_round, "test", {"accuracy": 0.5})
    assert output.getvalue().splitlines() == [
        "round 1/2  client-0 test accuracy 0.500  elapsed 0:10  left 0:30",
        "round 2/2  client-0 test accuracy 0.500  elapsed 0:20  left 0:20",
        "round 1/2  client-1 test accuracy 0.500  elapsed 0:30  left 0:10",
        "round 2/2  client-1 test accuracy 0.500  elapsed 0:40  left 0:00",
    ]


def test_a_long_client_is_not_silent_on_a_pipe(tmp_path: Path, clock: list[float]) -> None:
    output = StringIO()
    with make(tmp_path, console=Console(file=output)) as tracker:
        tracker.start_client(1, 7, 1000)
        for _ in range(10):
            clock[0] += progress.LINE_SECONDS / 4
            tracker.advance(50)
    lines = output.getvalue().splitlines()
    assert [line.partition("  elapsed")[0] for line in lines] == [
        "round 1/2  client-7  200 of 1000 pairs",
        "round 1/2  client-7  400 of 1000 pairs",
        "round 1/2",
    ]


def test_the_reference_column_is_not_filled_in_silence(tmp_path: Path, clock: list[float]) -> None:
    output = StringIO()
    with make(tmp_path, console=Console(file=output)) as tracker:
        for done in range(100, 601, 100):
            clock[0] += progress.LINE_SECONDS / 2
            tracker.reference(done, 800)
    assert output.getvalue().splitlines() == [
        "reference log-probs  200 of 800 pairs  elapsed 0:30  left 1:30",
        "reference log-probs  400 of 800 pairs  elapsed 1:00  left 1:00",
        "reference log-probs  600 of 800 pairs  elapsed 1:30  left 0:30",
    ]


def test_an_ascii_console_gets_ascii(tmp_path: Path) -> None:
    class Ascii(StringIO):
        encoding = "ascii"

    output = Ascii()
    with make(tmp_path, console=Console(file=output)) as tracker:
        tracker.server(1, "test", {"accuracy": 0.5, "accuracy_se": 0.1})
    assert "0.500 +/- 0.100" in output.getvalue()
    assert output.getvalue().isascii()


def test_a_terminal_shows_a_live_bar_and_keeps_the_round_lines(tmp_path: Path, clock: list[float]) -> None:
    output = StringIO()
    console = Console(file=output, force_terminal=True, force_interactive=True, width=120, _environ={"TERM": "xterm"})
    with make(tmp_path, console=console) as tracker:
        play(tracker, clock)
    text = output.getvalue()
    assert "round 2/2  client-1" in text
    assert "accuracy 0.812" in text
    assert "\u2501" * 16 in text  # all four visits are done
    assert text.count("elapsed 0:10  left 0:00") == 1
    assert text.count("\x1b[?25h") == 1  # the cursor is given back


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    tracker = make(tmp_path, tensorboard=True)
    tracker.server(1, "test", {"accuracy": 0.5})
    tracker.close()
    tracker.close()


# --- curves ---


def write_run(run_dir: Path, *, server: bool, rounds: int = 4, metrics: tuple[str, ...] = ("accuracy", "loss")) -> None:
    with make(run_dir) as tracker:
        for server_round in range(rounds):
            for client_id in (0, 1):
                values = {name: 0.5 + 0.1 * client_id + 0.01 * server_round for name in metrics}
                tracker.client(client_id, server_round, "validation" if server else "test", values)
            if server:
                for split in ("validation", "test"):
                    values = dict.fromkeys(metrics, 0.5 + 0.01 * server_round)
                    tracker.server(server_round, split, values | {"accuracy_se": 0.02})


def drawn(run_dir: Path, metric: str) -> dict[str, curves_module._Series]:
    return {series.split: series for series in curves_module._drawn(read_metrics(run_dir), metric)}


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
    write_run(tmp_path / "four", server=True, metrics=("accuracy", "loss", "margin", "kl"))
    two, four = (imread(path) for name in ("two", "four") if (path := curves(tmp_path / name)))
    assert two.shape[0] < 0.7 * four.shape[0]


def test_nothing_to_draw_draws_nothing(tmp_path: Path) -> None:
    assert curves(tmp_path) is None
    with make(tmp_path) as tracker:
        tracker.server(1, "test", {"accuracy": float("nan"), "win_rate": 0.5})
    assert curves(tmp_path) is None
    assert not (tmp_path / "curves.png").exists()


def test_server_curves_have_the_standard_error_as_band(tmp_path: Path) -> None:
    write_run(tmp_path, server=True)
    accuracy = drawn(tmp_path, "accuracy")["test"]
    assert accuracy.rounds.tolist() == [0, 1, 2, 3]
    assert accuracy.values == pytest.approx([0.5, 0.51, 0.52, 0.53])
    assert accuracy.spread.tolist() == [0.02] * 4
    assert np.isnan(drawn(tmp_path, "loss")["test"].spread).all()


def test_without_a_server_the_clients_mean_and_deviation_are_drawn(tmp_path: Path) -> None:
    """Clients at 0.5 and 0.6: mean 0.55, standard deviation 0.1 / sqrt(2)."""
    write_run(tmp_path, server=False)
    accuracy = drawn(tmp_path, "accuracy")["test"]
    assert accuracy.values[0] == pytest.approx(0.55)
    assert accuracy.spread == pytest.approx([0.1 / np.sqrt(2)] * 4)


def test_a_tie_before_training_is_not_drawn_as_accuracy_zero(tmp_path: Path) -> None:
    with make(tmp_path) as tracker:
        for server_round in (0, 1):
            tracker.server(server_round, "test", {"accuracy": 0.0, "loss": 0.7})
    assert drawn(tmp_path, "accuracy")["test"].rounds.tolist() == [1]
    assert drawn(tmp_path, "loss")["test"].rounds.tolist() == [0, 1]


# --- margins, times, responses, settings ---


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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


SAMPLE = {"prompt": "Human: a|b", "reference": "<b>no</b>", "policy": "yes\n*so*"}


def test_responses_are_lines_and_tensorboard_text(tmp_path: Path) -> None:
    with make(tmp_path, tensorboard=True) as tracker:
        tracker.evaluated(2, [1.0], [SAMPLE])
        tracker.evaluated(1, [1.0], [SAMPLE], who="client-0")
    assert [(row["round"], row["who"]) for row in lines_of(tmp_path / "samples.jsonl")] == [
        (2, "server"),
        (1, "client-0"),
    ]
    assert lines_of(tmp_path / "samples.jsonl")[0] == {"round": 2, "who": "server", **SAMPLE}
    for folder, step in (("Server", 2), ("Client-0", 1)):
        events = EventAccumulator(str(tmp_path / "tensorboard" / folder)).Reload()
        texts = {}
        for tag in events.Tags()["tensors"]:
            assert events.summary_metadata[tag].plugin_data.plugin_name == "text"
            (event,) = events.Tensors(tag)
            assert event.step == step
            texts[tag.removesuffix("/text_summary")] = event.tensor_proto.string_val[0].decode()
        assert texts == {
            "policy_samples": "| prompt | policy |\n|---|---|\n| Human: a\\|b | yes<br>\\*so\\* |",
            "reference_samples": "| prompt | reference |\n|---|---|\n| Human: a\\|b | &lt;b&gt;no&lt;/b&gt; |",
        }


def test_tensorboards_hparams_plugin_finds_settings_metrics_and_the_end(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams import metadata

    with make(tmp_path, tensorboard=True) as tracker:
        tracker.settings({"lr": 0.5, "mode": "federated", "loss.reference_free": False})
        tracker.server(1, "test", {"accuracy": 0.75})
        tracker.summary()
    events = EventAccumulator(str(tmp_path / "tensorboard" / "Server")).Reload()
    content = {tag: found.plugin_data.content for tag, found in events.summary_metadata.items() if "hparams" in tag}
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.hparams["lr"].number_value == 0.5 and start.hparams["mode"].string_value == "federated"
    assert start.hparams["loss.reference_free"].bool_value is False
    metrics = [
        info.name.tag for info in metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG]).metric_infos
    ]
    assert "test/accuracy" in metrics and scalars(tmp_path / "tensorboard" / "Server")["test/accuracy"] == [(1, 0.75)]
    assert metadata.parse_session_end_info_plugin_data(content[metadata.SESSION_END_INFO_TAG]).status == 1  # success


def test_the_mean_over_clients_that_train_alone_counts_their_own_pairs_only(tmp_path: Path) -> None:
    """Client 0 trains 10 pairs a round, client 1 then 6: after one round together 16, after two 32."""
    with make(tmp_path, tensorboard=True) as tracker:
        for client, pairs, accuracies in ((0, 10, (0.0, 0.5, 0.6)), (1, 6, (0.0, 0.7, 1.0))):
            for server_round, accuracy in enumerate(accuracies):
                tracker.advance(pairs if server_round else 0)
                tracker.client(client, server_round, "test", {"accuracy": accuracy, "accuracy_se": 0.1})
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


def test_bytes_are_summed_in_the_summary_and_are_no_evaluation(tmp_path: Path) -> None:
    with make(tmp_path, tensorboard=True) as tracker:
        for server_round in (1, 2):
            tracker.communication(server_round, 100, 40)
            tracker.server(server_round, "test", {"accuracy": 0.5})
        report = tracker.summary()
    assert report["bytes"] == {"sent": 200, "received": 80} and report["final"].keys() == {"test"}
    assert scalars(tmp_path / "tensorboard" / "Server")["communication/bytes_received"] == [(1, 40.0), (2, 40.0)]
