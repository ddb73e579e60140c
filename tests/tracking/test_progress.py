from io import StringIO
from pathlib import Path

from rich.console import Console

from fed.tracking import progress
from fed.tracking.tracker import Tracker
from support.trackers import make


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
        tracker.server(server_round, "test", {"accuracy": 0.79, "accuracy_low": 0.752, "accuracy_high": 0.823})


def test_a_pipe_gets_one_unbroken_line_per_round(tmp_path: Path, clock: list[float]) -> None:
    """Round 1 took 5 s, so does round 2; nothing is left after round 2."""
    output = StringIO()
    with make(tmp_path, console=Console(file=output, width=40)) as tracker:
        tracker.server(0, "validation", {"loss": 0.6931})
        play(tracker, clock)
    figures = (
        "validation accuracy 0.812  test accuracy 0.790 [0.752, 0.823]  clients' validation accuracy 0.625  "
        "50 pairs/s in training"
    )
    lines = output.getvalue().splitlines()
    assert lines[0] == "round 0/2  validation loss 0.693  elapsed 0:00"
    assert lines[1].split("  ")[0] == "round 1/2"
    assert set(figures.split("  ")) <= set(lines[1].split("  "))
    assert lines[1].endswith("50 pairs/s in training  elapsed 0:05  left 0:05")
    assert lines[2].endswith("50 pairs/s in training  elapsed 0:10  left 0:00")
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


def test_time_elapsed_counts_that_before_a_resume_as_the_summary_does(tmp_path: Path, clock: list[float]) -> None:
    """Ten seconds before the checkpoint, two of another process that resumes, and three of its training."""
    with make(tmp_path) as first:
        clock[0] += 10
        state = first.state_dict()
    output = StringIO()
    with make(tmp_path, console=Console(file=output)) as tracker:
        clock[0] += 2
        tracker.load_state_dict(state)
        clock[0] += 3
        tracker.server(2, "test", {"loss": 0.5})
    assert "elapsed 0:13" in output.getvalue() and tracker.summary()["wall_seconds"] == 13


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


def test_on_a_terminal_a_bar_shows_the_reference_column_and_goes_away(tmp_path: Path, clock: list[float]) -> None:
    output = StringIO()
    console = Console(file=output, force_terminal=True, force_interactive=True, width=120, _environ={"TERM": "xterm"})
    with make(tmp_path, console=console) as tracker:
        for done in (400, 800):
            clock[0] += 10
            tracker.reference(done, 800)
        assert output.getvalue().count("\x1b[?25h") == 1  # the cursor is given back before training
    assert "reference log-probs  800 of 800 pairs" in output.getvalue()
    assert output.getvalue().endswith("\x1b[2K")  # the bar's line is erased


def test_loss_and_margin_stand_beside_the_last_accuracy(tmp_path: Path, clock: list[float]) -> None:
    output = StringIO()
    with make(tmp_path, console=Console(file=output)) as tracker:
        tracker.server(1, "validation", {"accuracy": 0.5, "loss": 0.7, "margin": 0.1})
        tracker.server(1, "test", {"accuracy": 0.6, "loss": 0.625, "margin": -0.25})
        tracker.end_round()
        tracker.server(2, "validation", {"accuracy": 0.5, "loss": 0.7, "margin": 0.1})
    lines = [line.partition("  elapsed")[0] for line in output.getvalue().splitlines()]
    assert lines == [
        "round 1/2  validation accuracy 0.500  test accuracy 0.600  test loss 0.625  test margin -0.250",
        "round 2/2  validation accuracy 0.500  validation loss 0.700  validation margin 0.100",
    ]


def test_an_ascii_console_gets_ascii(tmp_path: Path) -> None:
    class Ascii(StringIO):
        encoding = "ascii"

    output = Ascii()
    with make(tmp_path, console=Console(file=output)) as tracker:
        tracker.server(1, "test", {"accuracy": 0.5, "accuracy_low": 0.4, "accuracy_high": 0.6})
    assert "0.500 [0.400, 0.600]" in output.getvalue()
    assert output.getvalue().isascii()


def test_ties_are_counted_and_are_no_errors_of_training(tmp_path: Path) -> None:
    """Of 10 pairs each of two clients ties on 4 and ranks 3 and 6 of the other 6 rightly: (3/6 + 6/6) / 2."""
    output = StringIO()
    with make(tmp_path, console=Console(file=output), rounds=1) as tracker:
        tracker.server(0, "test", {"accuracy": 0.0, "ties": 1.0, "examples": 1200})
        tracker.end_round()
        for client_id, right in ((0, 3), (1, 6)):
            metrics = {"accuracy": right / 10, "ties": 0.4, "examples": 10}
            tracker.client(client_id, 1, "train", metrics)
            tracker.client(client_id, 1, "validation", {"accuracy": 0.5, "ties": 0.0, "examples": 16})
        tracker.server(1, "test", {"accuracy": 0.5, "ties": 0.25, "examples": 1200})
    first, second = output.getvalue().splitlines()
    assert first.split("  ")[1] == "test accuracy: all 1,200 pairs tied"
    assert second.split("  ")[1:4] == [
        "test accuracy 0.500 (300 of 1,200 pairs tied)",
        "clients' train accuracy 0.750 (without 8 tied of 20 pairs)",
        "clients' validation accuracy 0.500",
    ]


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
