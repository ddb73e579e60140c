"""Clients that are stopped or take too long, alone and in several processes."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Message, RecordDict

from fed.distributed import stop
from fed.distributed.ranks import arrange
from fed.errors import Failed, Stopped
from fed.model.arrays import to_record, to_tensors
from support.journals import RUN, Event, Run, files
from support.ranks import in_ranks


@contextmanager
def asked(number: int = signal.SIGTERM) -> Iterator[None]:
    """Ask this process to stop by a signal."""
    with stop.listening():
        os.kill(os.getpid(), number)
        yield


class Steps:
    """A client of four steps of two pairs, which is stopped after some of them."""

    def __init__(self, run: Run, stops_after: int | None = None) -> None:
        self.run, self.stops_after = run, stops_after
        self.points: list[Any] = []

    def __call__(self, message: Message) -> Message:
        journal, recorder = self.run.journal, self.run.recorder
        recorder.start_client(3, 5, 8)
        point = journal.point()
        self.points.append(point)
        first, sums = (0, torch.zeros(2)) if point is None else (point["step"], point["sums"])
        for step in range(first + 1, 5):
            sums = sums + step
            recorder.advance(2)
            recorder.update(5, "train", {"loss": 1 / step}, step=step)
            self.run.log.clock["train"] = self.run.log.clock.get("train", 0.0) + 1.0
            state = {"step": step, "sums": sums}
            with asked() if step == self.stops_after else nullcontext():
                journal.pause(lambda state=state: state)  # type: ignore[misc]
        return Message(RecordDict({"arrays": to_record({"sums": sums})}), reply_to=message)


def stepped(folder: Path, stops_after: int | None) -> tuple[Run, Steps, float | None]:
    """Run a client and return the process, the client, and the sum it replied; None if it was stopped."""
    run = Run(folder)
    client = Steps(run, stops_after)
    if stops_after is None:
        return run, client, float(to_tensors(run.ask(client=client).content.array_records["arrays"])["sums"][0])
    with pytest.raises(Stopped, match="stopped by SIGTERM"):
        run.ask(client=client)
    return run, client, None


def step_events(*steps: int) -> list[Event]:
    return [event for step in steps for event in (("advance", 2), ("update", 5, "train", {"loss": 1 / step}, step))]


BEGINS = ("start_client", 3, 5, 8)


def test_a_client_that_is_stopped_resumes_from_its_point(tmp_path: Path) -> None:
    """The sum is 1 + 2 before and 3 + 4 after, 10; the second process takes only steps 3 and 4."""
    stepped(tmp_path, 2)
    assert files(tmp_path) == ["round-3.begun/point-train-5-1-0.safetensors"]
    run, client, answer = stepped(tmp_path, None)
    (point,) = client.points
    assert point["step"] == 2 and point["sums"].tolist() == [3, 3] and answer == 10
    assert run.log.told == [BEGINS, *step_events(1, 2), ("spend", {"train": 2.0}), BEGINS, *step_events(3, 4)]
    assert files(tmp_path) == ["round-3.begun/reply-train-5-1-0.safetensors"]


def test_a_stopped_clients_events_are_told_once_when_its_answer_is_found(tmp_path: Path) -> None:
    """Each step and the start are reported once, and the seconds of both processes are added."""
    stepped(tmp_path, 2)
    stepped(tmp_path, None)
    third = Run(tmp_path)
    third.ask()
    assert third.calls == 0
    assert sorted(map(repr, third.log.told)) == sorted(
        map(repr, [BEGINS, *step_events(1, 2, 3, 4), ("spend", {"train": 4.0})])
    )
    assert [event for event in third.log.told if event[0] == "update"] == step_events(1, 2, 3, 4)[1::2]


def test_a_client_may_be_stopped_more_than_once(tmp_path: Path) -> None:
    stepped(tmp_path, 1)
    run, _, _ = stepped(tmp_path, 3)
    assert run.log.told == [BEGINS, *step_events(1), ("spend", {"train": 1.0}), BEGINS, *step_events(2, 3)]
    run, client, answer = stepped(tmp_path, None)
    assert client.points[0]["step"] == 3 and answer == 10
    assert [event for event in run.log.told if event[0] != "spend"].count(BEGINS) == 2
    assert [event for event in run.log.told if event[0] in ("advance", "update")] == step_events(1, 2, 3, 4)
    assert sum(event[1]["train"] for event in run.log.told if event[0] == "spend") == 3.0


@pytest.mark.parametrize("how", ["damaged", "another run"])
def test_a_point_that_does_not_count_begins_the_client_anew(how: str, tmp_path: Path) -> None:
    stepped(tmp_path, 2)
    run = Run(tmp_path, run={"model": "xyz"} if how == "another run" else RUN)
    if how == "damaged":
        path = tmp_path / "round-3.begun" / "point-train-5-1-0.safetensors"
        path.write_bytes(path.read_bytes()[:-1])
    client = Steps(run)
    reply = run.ask(client=client)
    assert client.points == [None] and float(to_tensors(reply.content.array_records["arrays"])["sums"][0]) == 10
    assert run.log.told == [BEGINS, *step_events(1, 2, 3, 4)]


def test_the_next_client_does_not_get_the_point_of_the_one_before(tmp_path: Path) -> None:
    stepped(tmp_path, 2)
    run = Run(tmp_path)
    client = Steps(run)
    run.ask(client=client)
    run.ask("train-6-1", client=client)
    assert [point and point["step"] for point in client.points] == [2, None]


def test_a_stop_without_a_folder_leaves_no_point(tmp_path: Path) -> None:
    run = Run(None)
    with pytest.raises(Stopped):
        run.ask(client=Steps(run, 2))
    assert files(tmp_path) == []


def test_a_run_that_is_to_stop_asks_no_further_client(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with asked(signal.SIGINT), pytest.raises(Stopped, match="stopped by SIGINT"):
        run.ask()
    assert run.calls == 0 and files(tmp_path) == []


class Clock:
    """Stands in for `time.monotonic`."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("fed.checkpoints.journal.time.monotonic", clock)
    return clock


def takes(run: Run, seconds: float, wait: Callable[[float], object]) -> Callable[[Message], Message]:
    """Return a client of two steps that take so many seconds each."""

    def train(message: Message) -> Message:
        for _ in range(2):
            wait(seconds)
            run.journal.pause(dict)
        return Message(RecordDict(), reply_to=message)

    return train


@pytest.mark.parametrize("keeps", [True, False])
def test_a_client_that_takes_longer_than_it_may_fails_and_each_has_its_full_time(
    keeps: bool, tmp_path: Path, clock: Clock
) -> None:
    def wait(seconds: float) -> None:
        clock.now += seconds

    run = Run(tmp_path if keeps else None, timeout=2.5)
    with pytest.raises(Failed, match=r"^it took longer than client_timeout=2.5 seconds$"):
        run.ask(client=takes(run, 1.5, wait))
    assert files(tmp_path) == []
    for node in (6, 7, 8):
        run.ask(f"train-{node}-1", client=takes(run, 1.25, wait))  # 2.5 in all is in time
    assert run.calls == 4


def test_without_a_limit_a_client_has_all_time(clock: Clock) -> None:
    def wait(seconds: float) -> None:
        clock.now += seconds

    run = Run(None)
    run.ask(client=takes(run, 1e12, wait))
    assert run.calls == 1


def together(folder: Path, damage: str) -> tuple[list[int], str]:
    """Train a client, damage one process's file, ask both again, and return the number of calls in this process."""
    own = arrange(1, torch.device("cpu")).own
    first = Run(folder, own=own, process=own.index)
    first.ask()
    own.gather(None)
    if damage and own.index == 1:
        (folder / "round-3.begun" / f"{damage}-train-5-1-1.safetensors").unlink()
    own.gather(None)
    second = Run(folder, own=own, process=own.index)
    second.ask()
    third = Run(folder, own=own, process=own.index)
    client = Steps(third, 2 if own.index == 1 else None)  # the signal reaches one of them
    error = ""
    try:
        third.ask("train-5-2", client=client)
    except Stopped as stopped:
        error = str(stopped)
    fourth = Run(folder, own=own, process=own.index)
    fourth.ask("train-5-2", client=(last := Steps(fourth)))
    return [second.calls, last.points[0]["step"]], error


@pytest.mark.parametrize(("damage", "calls"), [("", 0), ("reply", 1), ("client", 1)])
def test_processes_of_one_client_agree_on_what_is_known_and_when_to_stop(
    damage: str, calls: int, tmp_path: Path
) -> None:
    assert in_ranks(2, together, tmp_path, damage) == [([calls, 2], "stopped by SIGTERM")] * 2


def too_slow(folder: Path) -> str:
    own = arrange(1, torch.device("cpu")).own
    run = Run(folder, own=own, process=own.index, timeout=0.2)
    try:
        run.ask(client=takes(run, 0.3 if own.index == 1 else 0.0, time.sleep))
    except Failed as error:
        return str(error)
    return "in time"


def test_one_process_that_is_late_ends_the_client_in_both(tmp_path: Path) -> None:
    assert in_ranks(2, too_slow, tmp_path) == ["it took longer than client_timeout=0.2 seconds"] * 2
