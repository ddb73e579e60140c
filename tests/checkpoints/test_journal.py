"""Replies on the disk: which clients train again after a run was killed, and from which state."""

from pathlib import Path

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict

from fed.errors import CannotWrite, Failed
from fed.model.arrays import to_tensors
from support.journals import RUN, TOLD, Run, files


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
