"""Replies on the disk: which clients train again after a run was killed, and from which state."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from fed.checkpoints.contexts import ClientFiles
from fed.checkpoints.journal import Journal
from fed.distributed import stop
from fed.distributed.ranks import ALONE, Ranks, arrange
from fed.errors import CannotWrite, Failed, Stopped
from fed.grids.local import LocalGrid
from fed.model.arrays import to_record, to_tensors
from fed.tracking.log import Log as BaseLog
from fed.tracking.log import Recorder
from support.ranks import in_ranks

RUN = {"model": "abc"}
Event = tuple[Any, ...]


@pytest.fixture(autouse=True)
def grid() -> LocalGrid:
    """Create a grid: `Message()` needs the identity that it sets."""
    return LocalGrid(lambda message, context: message, [])


class Log(BaseLog):
    """A log that remembers its reports; its clock stands where it is set."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.clock: dict[str, float] = {}

    def start_client(self, server_round: int, client_id: int, pairs: int) -> None:
        self.told.append(("start_client", server_round, client_id, pairs))

    def client(self, client_id: int, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        self.told.append(("client", client_id, server_round, split, dict(metrics)))

    def update(self, client_id: int, split: str, metrics: Mapping[str, float], *, step: int) -> None:
        self.told.append(("update", client_id, split, dict(metrics), step))

    def advance(self, pairs: int) -> None:
        self.told.append(("advance", pairs))

    def seconds(self) -> dict[str, float]:
        return dict(self.clock)

    def spend(self, seconds: Mapping[str, float]) -> None:
        self.told.append(("spend", dict(seconds)))
        for name, more in seconds.items():
            self.clock[name] = self.clock.get(name, 0.0) + more


class Run:
    """One process of a run: its log, recorder, journal and client, whose calls it counts."""

    def __init__(
        self, folder: Path | None, *, own: Ranks = ALONE, process: int = 0, run: Any = RUN, timeout: float | None = None
    ) -> None:
        self.log = Log()
        self.recorder = Recorder(self.log)
        self.files = ClientFiles()
        self.journal = Journal(folder, process, own, self.files, self.recorder, run, client_timeout=timeout)
        self.context = Context(0, 5, {}, RecordDict(), {})
        self.calls = 0

    def ask(
        self, what: str = "train-5-1", *, server_round: int = 3, client: Callable[..., Message] | None = None
    ) -> Message:
        """Return the client's reply to one message."""
        message = Message(RecordDict(), 5, "train")

        def answer() -> Message:
            self.calls += 1
            return (client or self.train)(message)

        return self.journal.answer(server_round, what, message, self.context, answer)

    def train(self, message: Message) -> Message:
        """Report everything a client can report, store records of all kinds, reply with a number that JSON lacks."""
        self.recorder.start_client(3, 5, 8)
        self.recorder.update(5, "train", {"loss/train": 0.5}, step=1)
        self.recorder.advance(8)
        self.recorder.client(5, 3, "train", {"loss": 0.25})
        self.log.clock = {**self.log.clock, "train": self.log.clock.get("train", 0.0) + 1.5}
        self.context.state["counters"] = MetricRecord({"n": 2})
        self.context.state["words"] = ConfigRecord({"b": b"\xff"})
        self.context.state["own"] = to_record({"v": torch.tensor([1 / 3], dtype=torch.float64)})
        arrays = to_record({"w": torch.tensor([0.1, torch.nan, -0.0])})
        return Message(
            RecordDict({"arrays": arrays, "metrics": MetricRecord({"loss": float("inf")})}), reply_to=message
        )


TOLD = [
    ("start_client", 3, 5, 8),
    ("update", 5, "train", {"loss/train": 0.5}, 1),
    ("advance", 8),
    ("client", 5, 3, "train", {"loss": 0.25}),
]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# A client that is done


def test_a_client_that_answered_is_not_asked_again_and_all_it_left_comes_back(tmp_path: Path) -> None:
    first = Run(tmp_path)
    first.ask()
    assert first.log.told == TOLD and first.calls == 1

    second = Run(tmp_path)
    reply = second.ask()
    assert second.calls == 0
    assert second.log.told == [*TOLD, ("spend", {"train": 1.5})]
    found = to_tensors(reply.content.array_records["arrays"])["w"]
    assert found.view(torch.int32).tolist() == torch.tensor([0.1, torch.nan, -0.0]).view(torch.int32).tolist()
    assert dict(reply.content["metrics"]) == {"loss": float("inf")}
    assert (reply.metadata.src_node_id, reply.metadata.message_type) == (5, "train")
    state = second.context.state
    assert list(state) == ["counters", "words", "own"]
    assert dict(state["counters"]) == {"n": 2} and dict(state["words"]) == {"b": b"\xff"}
    own = to_tensors(state.array_records["own"])["v"]
    assert own.dtype == torch.float64 and own.tolist() == [1 / 3]


def test_a_run_may_be_cut_off_more_than_once(tmp_path: Path) -> None:
    Run(tmp_path).ask()
    for _ in range(2):
        later = Run(tmp_path)
        later.ask()
        assert later.calls == 0 and later.log.told == [*TOLD, ("spend", {"train": 1.5})]


def test_only_time_since_the_client_began_is_told_again(tmp_path: Path) -> None:
    first = Run(tmp_path)
    first.log.clock = {"train": 100.0, "reference": 7.0}
    first.ask()
    second = Run(tmp_path)
    second.ask()
    assert second.log.told[-1] == ("spend", {"train": 1.5, "reference": 0.0})


def test_another_round_another_message_and_another_process_have_answers_of_their_own(tmp_path: Path) -> None:
    Run(tmp_path).ask()
    for run, where in (
        (Run(tmp_path), {"server_round": 4}),
        (Run(tmp_path), {"what": "train-5-2"}),
        (Run(tmp_path), {"what": "evaluate-5-1"}),
        (Run(tmp_path, process=1), {}),
    ):
        run.ask(**where)  # type: ignore[arg-type]
        assert run.calls == 1


def test_files_lie_in_the_folder_of_the_round_that_has_begun(tmp_path: Path) -> None:
    Run(tmp_path).ask()
    assert files(tmp_path) == [
        "round-3.begun/client-train-5-1-0.safetensors",
        "round-3.begun/reply-train-5-1-0.safetensors",
    ]


def test_a_client_without_arrays_of_its_own_has_one_file(tmp_path: Path) -> None:
    def train(message: Message) -> Message:
        return Message(RecordDict({"metrics": MetricRecord({"n": 1})}), reply_to=message)

    Run(tmp_path).ask(client=train)
    assert files(tmp_path) == ["round-3.begun/reply-train-5-1-0.safetensors"]
    second = Run(tmp_path)
    assert dict(second.ask().content["metrics"]) == {"n": 1} and second.calls == 0


def test_arrays_that_come_back_are_not_written_again_by_the_next_checkpoint(tmp_path: Path) -> None:
    Run(tmp_path).ask()
    second = Run(tmp_path)
    second.ask()
    assert second.files.write(tmp_path / "next", 5, second.context)
    stored = tmp_path / "round-3.begun" / "client-train-5-1-0.safetensors"
    assert (tmp_path / "next").stat().st_ino == stored.stat().st_ino


def test_answers_of_another_run_do_not_count(tmp_path: Path) -> None:
    Run(tmp_path).ask()
    for run in ({"model": "xyz"}, {}, {**RUN, "more": 1}):
        other = Run(tmp_path, run=run)
        other.ask()
        assert other.calls == 1
        assert other.log.told == TOLD
        Run(tmp_path, run=run).ask(client=lambda message: pytest.fail("asked again"))


@pytest.mark.parametrize("name", ["reply", "client"])
@pytest.mark.parametrize("damage", ["cut", "flip", "missing"])
def test_a_client_whose_answer_is_damaged_is_asked_again(name: str, damage: str, tmp_path: Path) -> None:
    Run(tmp_path).ask()
    path = tmp_path / "round-3.begun" / f"{name}-train-5-1-0.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "cut" else content)
    if damage == "missing":
        path.unlink()
    second = Run(tmp_path)
    second.ask()
    assert second.calls == 1 and second.log.told == TOLD
    third = Run(tmp_path)
    third.ask()
    assert third.calls == 0  # the answer is whole again
    assert to_tensors(third.context.state.array_records["own"])["v"].tolist() == [1 / 3]


def test_a_client_that_failed_is_asked_again(tmp_path: Path) -> None:
    def fails(message: Message) -> Message:
        raise Failed("no power")

    with pytest.raises(Failed, match="no power"):
        Run(tmp_path).ask(client=fails)
    assert files(tmp_path) == []
    second = Run(tmp_path)
    second.ask()
    assert second.calls == 1


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        run = Run(None)
        assert to_tensors(run.ask().content.array_records["arrays"])["w"][0] == torch.tensor(0.1)
        assert run.calls == 1 and run.log.told == TOLD
    run.ask()
    assert len(run.recorder.events()) == len(TOLD) + 1  # those of the last client: they do not pile up
    assert files(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWrite, match=r"cannot write .*reply-train-5-1-0.safetensors: Not a directory$"):
        Run(tmp_path / "file").ask()


# A client that is stopped in the middle


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


# A client that takes too long


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


# Several processes that train a client together


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
