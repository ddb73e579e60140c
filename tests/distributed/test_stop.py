"""The first signal ends a run after its present step, another one ends it at once."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fed.distributed import stop
from fed.distributed.ranks import arrange
from fed.distributed.stop import ORDER, SIGNALS, Stop
from fed.errors import Stopped
from support.ranks import in_ranks


@pytest.fixture(autouse=True)
def no_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ORDER, raising=False)


def in_child(work: Callable[[], int]) -> int:
    """Do the work in a forked process and return its status, as `os.waitpid` tells it."""
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        child = os.fork()
    if child == 0:  # nothing of the test program may run here
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child did not end")


def send(number: int) -> None:
    os.kill(os.getpid(), number)


class Clock:
    """A clock that a child sets by hand, in place of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        time.monotonic = lambda: self.now


# One process


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_is_noted_and_nothing_more(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        told: list[int] = []
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under `nohup`
        with stop.listening(told.append):
            before = stop.requested(), Stop().requested()
            Stop().check()  # nobody asked yet
            send(number)
            try:
                Stop().check()
            except Stopped as stopped:
                return (
                    7 if (before, stopped.number, stop.requested(), told) == ((0, 0), number, number, [number]) else 8
                )
        return 9

    assert os.waitstatus_to_exitcode(in_child(work)) == 7
    name = signal.Signals(number).name
    assert capfd.readouterr().err == f"{name}: stopping after this step; send it again to stop at once\n"


def test_a_closed_terminal_ends_no_run_under_nohup() -> None:
    def work() -> int:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop.listening():
            send(signal.SIGHUP)
            return 7 if stop.requested() == 0 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else 8

    assert os.waitstatus_to_exitcode(in_child(work)) == 7


def test_a_second_signal_within_half_a_second_is_the_same_request(capfd: pytest.CaptureFixture[str]) -> None:
    """A terminal and a launcher may both deliver one Ctrl-C."""

    def work() -> int:
        told: list[int] = []
        with stop.listening(told.append):
            for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
                send(number)
            return 7 if (stop.requested(), told) == (signal.SIGINT, [signal.SIGINT]) else 8

    assert os.waitstatus_to_exitcode(in_child(work)) == 7
    assert capfd.readouterr().err.count("stopping after this step") == 1


@pytest.mark.parametrize(("first", "second"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)])
def test_a_later_second_signal_ends_the_process_at_once(first: int, second: int) -> None:
    def work() -> int:
        clock = Clock()
        with stop.listening():
            send(first)
            clock.now += stop.SAME + 0.1
            send(second)
            return 8  # not reached

    status = in_child(work)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == second


def test_half_a_second_is_measured_from_the_first_signal() -> None:
    def work() -> int:
        clock = Clock()
        with stop.listening():
            send(signal.SIGTERM)
            clock.now += stop.SAME - 0.2
            send(signal.SIGTERM)  # too early
            clock.now += 0.2 + 0.01
            send(signal.SIGTERM)
            return 8

    status = in_child(work)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM


@pytest.mark.parametrize("error", [None, RuntimeError])
def test_afterwards_the_handlers_are_those_of_before_and_nothing_is_asked(error: type[Exception] | None) -> None:
    def own(number: int, frame: object) -> None:
        caught.append(number)

    def work() -> int:
        before = {number: signal.signal(number, own) for number in SIGNALS}
        assert before
        try:
            with stop.listening():
                assert all(signal.getsignal(number) is not own for number in SIGNALS)
                send(signal.SIGTERM)
                if error is not None:
                    raise error
        except RuntimeError:
            pass
        send(signal.SIGINT)
        return 7 if caught == [signal.SIGINT] and stop.requested() == 0 and Stop().requested() == 0 else 8

    caught: list[int] = []
    assert os.waitstatus_to_exitcode(in_child(work)) == 7


def test_outside_a_signal_has_its_usual_effect() -> None:
    def work() -> int:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        with stop.listening():
            pass
        send(signal.SIGTERM)
        return 8

    assert os.WTERMSIG(in_child(work)) == signal.SIGTERM


# The launcher's order


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Name the launcher's file; forget a request after the test."""
    monkeypatch.setenv(ORDER, str(tmp_path / "stop"))
    with stop.listening():
        yield tmp_path / "stop"


def test_an_order_in_the_launchers_file_is_a_request(order: Path) -> None:
    assert stop.requested() == 0
    order.write_text(str(int(signal.SIGTERM)))
    assert stop.requested() == signal.SIGTERM
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM$"):
        Stop().check()
    order.unlink()  # the launcher has ended: the request stands
    assert stop.requested() == signal.SIGTERM


def test_a_signal_of_ones_own_comes_before_the_order(order: Path) -> None:
    order.write_text(str(int(signal.SIGTERM)))
    send(signal.SIGINT)
    assert stop.requested() == signal.SIGINT


def test_an_order_that_is_being_written_is_none_yet(order: Path) -> None:
    """`Path.write_text` makes an empty file first; the processes look at it after every step."""
    order.write_text("")
    assert stop.requested() == 0
    order.write_text("15")
    assert stop.requested() == signal.SIGTERM


# Several processes


def asked_together(numbers: list[int]) -> tuple[int, int, int]:
    """Return what is asked before and after a signal reaches some, and what `check` raises."""
    world = arrange(1, torch.device("cpu")).world
    with stop.listening():
        before = Stop(world).requested()
        if numbers[world.index]:
            send(numbers[world.index])
        after = Stop(world).requested()
        try:
            Stop(world).check()
        except Stopped as stopped:
            return before, after, stopped.number
    return before, after, 0


@pytest.mark.parametrize(
    ("numbers", "expected"), [([0, signal.SIGINT], 2), ([signal.SIGTERM, 0], 15), ([2, 15], 15), ([0, 0], 0)]
)
def test_all_processes_know_of_a_signal_that_reached_one(numbers: list[int], expected: int) -> None:
    assert in_ranks(2, asked_together, numbers) == [(0, expected, expected)] * 2
