"""Checkpoints of a whole federation: what comes back, and what stays on the disk."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fed.checkpoints import checkpointer, serialize
from fed.checkpoints.checkpointer import Checkpointer
from fed.distributed.ranks import ONE_PROCESS
from fed.errors import CannotContinue, CannotWrite
from fed.model import weight_files
from fed.model.arrays import to_record, to_tensors
from support.checkpoints import PARTS, RUN, Clients, Counter, names, new, nobody, restored, save, tree, weights


def test_all_that_was_saved_comes_back(tmp_path: Path) -> None:
    save(new(tmp_path), 1, 2)
    server_round, arrays, clients, counter = restored(tmp_path)
    assert server_round == 2
    assert {name: tensor.tolist() for name, tensor in arrays.items()} == {
        "w": [[2, 2], [2, 2]],
        "b": [float(torch.tensor(2 / 3))],
    }
    assert (clients.memory, counter) == (2, [2])
    for node, context in enumerate(clients.contexts):
        assert dict(context.state["visits"]) == {"n": 2, "x": 0.1 * node}
        assert dict(context.state["words"]) == {"last": "round 2", "bytes": b"\xff"}
    own = [{k: t.tolist() for k, t in to_tensors(context.state["own"]).items()} for context in clients.contexts]  # type: ignore[arg-type]
    assert own == [{"v": [2, -1]}, {"v": [7]}, {}]


def test_a_client_that_was_never_asked_has_nothing(tmp_path: Path) -> None:
    clients = Clients()
    new(tmp_path).save(1, weights(1), clients, {"counter": Counter()}, None)
    assert [len(context.state) for context in restored(tmp_path)[2].contexts] == [0, 0, 0]


def test_arrays_keep_their_precision_order_and_shape(tmp_path: Path) -> None:
    """Some of Flower's strategies return float64, in which 1/3 has other bits."""
    arrays = {
        "z": torch.tensor([1 / 3], dtype=torch.float64),
        "a": torch.tensor(0.1),
        "none": torch.zeros(0, 3),
        "n": torch.tensor([torch.nan, -0.0]),
    }
    new(tmp_path).save(1, to_record(arrays), Clients(), {}, None)
    checkpoint = new(tmp_path).newest(nobody)
    assert checkpoint is not None
    like = to_record({name: tensor.to(torch.float32) for name, tensor in arrays.items()})
    found = to_tensors(new(tmp_path).restore(checkpoint, like, Clients(), {}))
    assert list(found) == list(arrays)
    for name, tensor in arrays.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].numpy().tobytes() == tensor.numpy().tobytes()


def test_without_a_checkpoint_there_is_none_to_go_on_from(tmp_path: Path) -> None:
    assert new(tmp_path / "none").newest(nobody) is None
    for name in ("round-x", "round-3.partial", "round-4.begun", "other-1"):
        (tmp_path / name).mkdir()
    assert new(tmp_path).newest(nobody) is None


def test_rounds_are_ordered_by_number(tmp_path: Path) -> None:
    save(new(tmp_path), 9, 10)
    assert restored(tmp_path)[0] == 10


def test_a_checkpoint_is_due_every_so_many_rounds_and_after_the_last(tmp_path: Path) -> None:
    due = {
        every: [
            n
            for n in range(1, 8)
            if Checkpointer(tmp_path, ONE_PROCESS, PARTS, {}, every=every, last=1, num_rounds=7).is_due(n)
        ]
        for every in (0, 1, 3)
    }
    assert due == {0: [], 1: [1, 2, 3, 4, 5, 6, 7], 3: [3, 6, 7]}


@pytest.mark.parametrize("change", [{"model": "xyz"}, {"number of processes": 2}, {"more": 1}])
def test_a_checkpoint_of_another_run_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    save(new(tmp_path), 1)
    before = tree(tmp_path)
    ((key, value),) = change.items()
    with pytest.raises(
        CannotContinue, match=f"round-1 belongs to a run with another {key}: {RUN.get(key)}, now {value}"
    ):
        new(tmp_path, run={**RUN, **change}).newest(nobody)
    assert tree(tmp_path) == before


def test_only_the_newest_ones_and_the_best_stay(tmp_path: Path) -> None:
    writer = new(tmp_path)
    expected = {1: [1], 2: [1, 2], 3: [2, 3], 4: [2, 3, 4], 5: [2, 4, 5], 6: [5, 6]}
    for number, accuracy in ((1, 0.3), (2, 0.5), (3, 0.4), (4, 0.5), (5, 0.2), (6, 0.9)):
        save(writer, number, **{f"r{number}": accuracy})
        assert sorted(checkpointer.rounds(tmp_path)) == expected[number]
        best = {1: 1, 6: 6}.get(number, 2)  # 2, not 4, which is no better
        assert os.readlink(tmp_path / "best") == f"round-{best}"
        assert (tmp_path / "best" / "weights").is_dir()


def test_the_best_is_that_of_the_validation_pairs_or_else_of_the_test_pairs(tmp_path: Path) -> None:
    writer, clients = new(tmp_path, last=9), Clients()
    told: list[dict[str, Any]] = [
        {"validation_accuracy": 0.6, "test_accuracy": 0.1},
        {"validation_accuracy": 0.5, "test_accuracy": 0.9},
        {"test_accuracy": 0.7},
        {"validation_loss": 9.0},
    ]
    links = []
    for number, metrics in enumerate(told, 1):
        writer.save(number, weights(number), clients, {}, metrics)
        links.append(os.readlink(tmp_path / "best"))
    assert links == ["round-1", "round-1", "round-3", "round-3"]


def test_rounds_that_nobody_evaluated_are_not_the_best(tmp_path: Path) -> None:
    writer = new(tmp_path, last=1)
    save(writer, 1, 2)
    assert names(tmp_path) == ["round-2"]
    save(writer, 3, r3=0.0)
    save(writer, 4)
    assert names(tmp_path) == ["best", "round-3", "round-4"]


def test_a_resumed_run_knows_the_best_checkpoint(tmp_path: Path) -> None:
    save(new(tmp_path), 1, 2, 3, 4, r1=0.5, r2=0.9, r3=0.1, r4=0.1)
    second = new(tmp_path)
    checkpoint = second.newest(nobody)
    assert checkpoint is not None
    second.restore(checkpoint, weights(0), Clients(), {"counter": Counter()})
    save(second, 5, 6, r5=0.8, r6=0.8)
    assert names(tmp_path) == ["best", "round-2", "round-5", "round-6"]
    assert os.readlink(tmp_path / "best") == "round-2"


def leave_behind(folder: Path) -> None:
    """Leave the files that a killed process may leave."""
    for name in (
        "round-9.partial",
        "round-2.partial",
        "round-1.begun",
        "round-2.begun",
        "round-3.begun",
        "round-7.begun",
    ):
        (folder / name / "inner").mkdir(parents=True)
        (folder / name / "inner" / "file").write_text("x")
    (folder / "best.partial").symlink_to("round-9")


def test_leftovers_go_and_replies_of_the_next_round_stay(tmp_path: Path) -> None:
    writer = new(tmp_path)
    save(writer, 1, r1=0.5)
    leave_behind(tmp_path)
    save(writer, 2)
    assert names(tmp_path) == ["best", "round-1", "round-2", "round-3.begun"]
    assert (tmp_path / "round-3.begun" / "inner" / "file").read_text() == "x"
    leave_behind(tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        if not (tmp_path / path.name).exists():
            path.rename(tmp_path / path.name)
    shutil.rmtree(tmp_path / "again")
    restored(tmp_path)  # so does a run that goes on
    assert names(tmp_path) == ["best", "round-1", "round-2", "round-3.begun"]


def full(*arguments: Any, **named: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["weights", "client", "process", "sync", "rename"])
def test_a_full_disk_leaves_the_checkpoints_before_as_they_were(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(new(tmp_path), 1, 2, r1=0.9, r2=0.1)
    before = tree(tmp_path)
    writer = new(tmp_path)
    checkpoint = writer.newest(nobody)
    assert checkpoint is not None
    clients = Clients()
    writer.restore(checkpoint, weights(0), clients, {"counter": Counter()})
    clients.contexts[0].state["own"] = to_record({"v": torch.ones(2)})
    with monkeypatch.context() as patch:
        if place == "weights":
            patch.setattr(weight_files, "dcp_save", full)
        elif place == "sync":
            patch.setattr(os, "fsync", full)
        elif place == "rename":
            patch.setattr(Path, "rename", full)
        else:
            write = serialize.save_file
            patch.setattr(
                serialize, "save_file", lambda t, path, m: full() if place in path.name else write(t, path, m)
            )
        with pytest.raises(CannotWrite, match=r"^cannot write .*round-3.*: No space left on device$"):
            writer.save(3, weights(3), clients, {"counter": Counter([3])}, {"validation_accuracy": 1.0})
    assert tree(tmp_path) == before and names(tmp_path) == ["best", "round-1", "round-2"]
    assert os.readlink(tmp_path / "best") == "round-1"
    assert restored(tmp_path)[0] == 2
