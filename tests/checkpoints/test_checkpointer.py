"""Checkpoints of a whole federation: what comes back, what stays on the disk, and how damage is found."""

import errno
import gc
import os
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict
from torch import nn

from fed import files
from fed.checkpoints import checkpointer, contexts, serialize
from fed.checkpoints.checkpointer import Checkpoint, Checkpointer
from fed.checkpoints.contexts import ClientFiles, Contexts
from fed.config.groups import ModelSettings
from fed.data.collate import Layout
from fed.distributed.ranks import ONE_PROCESS, Mesh, arrange
from fed.distributed.shards import Shards
from fed.errors import CannotContinue, CannotWrite
from fed.model import weight_files
from fed.model.arrays import TensorArray, to_record, to_tensors
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.seeding import seed_globals
from support.ranks import in_ranks

RUN = {"model": "abc", "number of processes": 1}
PARTS = Shards(nn.Linear(1, 1))  # nothing of it is split


class Clients:
    """The contexts of three clients, and a number that the grid itself stores."""

    def __init__(self, contexts: Sequence[Context] | None = None) -> None:
        self.contexts = contexts or [Context(0, node, {}, RecordDict(), {}) for node in range(3)]
        self.memory = 0

    def state_dict(self) -> Any:
        return {"memory": self.memory}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.memory = state["memory"]


class Counter:
    """An object whose state is a number."""

    def __init__(self, value: Any = None) -> None:
        self.value = value

    def state_dict(self) -> Any:
        return self.value

    def load_state_dict(self, state: Any) -> None:
        self.value = state


def new(folder: Path, *, last: int = 2, run: Mapping[str, Any] = RUN, mesh: Mesh = ONE_PROCESS) -> Checkpointer:
    return Checkpointer(folder, mesh, PARTS, run, every=1, last=last, num_rounds=9)


def weights(server_round: int) -> ArrayRecord:
    return to_record({"w": torch.full((2, 2), float(server_round)), "b": torch.tensor([server_round / 3])})


def trained(server_round: int) -> Clients:
    """Return clients of which 0 stores a new array each round, 1 always the same one, and 2 none."""
    clients = Clients()
    for node, context in enumerate(clients.contexts):
        context.state["visits"] = MetricRecord({"n": server_round, "x": 0.1 * node})
        context.state["words"] = ConfigRecord({"last": f"round {server_round}", "bytes": b"\xff"})
    clients.contexts[0].state["own"] = to_record({"v": torch.tensor([float(server_round), -1.0])})
    clients.contexts[1].state["own"] = SAME
    clients.contexts[2].state["own"] = ArrayRecord()
    clients.memory = server_round
    return clients


SAME = to_record({"v": torch.tensor([7.0])})


def save(checkpointer: Checkpointer, *numbers: int, **accuracies: float) -> None:
    for number in numbers:
        metrics = {"validation_accuracy": accuracies[f"r{number}"]} if f"r{number}" in accuracies else None
        checkpointer.save(number, weights(number), trained(number), {"counter": Counter([number])}, metrics)


def nobody(message: str) -> None:
    raise AssertionError(message)


def restored(folder: Path, checkpoint: Checkpoint | None = None) -> tuple[int, dict[str, Any], Clients, Any]:
    """Restore the checkpoint in a new process."""
    reader, clients, counter = new(folder), Clients(), Counter()
    checkpoint = checkpoint or reader.newest(nobody)
    assert checkpoint is not None
    arrays = reader.restore(checkpoint, weights(0), clients, {"counter": counter})
    return checkpoint.server_round, to_tensors(arrays), clients, counter.value


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# What comes back


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
    with pytest.raises(CannotContinue, match=f"round-1 is of a run whose {key} was {RUN.get(key)}, here it is {value}"):
        new(tmp_path, run={**RUN, **change}).newest(nobody)
    assert tree(tmp_path) == before


# What stays on the disk


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


# Damage


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def flip_last(path: Path) -> None:
    """Flip the last bit of the last number, which no reader of the format notices."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def written_apart(folder: Path) -> None:
    """Replace links by copies, since damage to a linked file would damage all."""
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)


FILES = ["weights/*.safetensors", "process-0.safetensors", "client-0-0.safetensors", "client-1-0.safetensors"]


@pytest.mark.parametrize("damage", [cut, empty, flip, flip_last, Path.unlink])
@pytest.mark.parametrize("pattern", FILES)
def test_damage_to_any_file_is_told_and_the_checkpoint_before_is_used(
    damage: Callable[[Path], None], pattern: str, tmp_path: Path
) -> None:
    save(new(tmp_path), 1, 2)
    written_apart(tmp_path / "round-2")
    (file,) = (tmp_path / "round-2").glob(pattern)
    damage(file)
    told: list[str] = []
    checkpoint = new(tmp_path).newest(told.append)
    assert checkpoint is not None and checkpoint.server_round == 1
    assert len(told) == 1 and told[0].startswith(f"checkpoint {tmp_path / 'round-2'} is damaged: ")
    assert file.name in told[0]
    _, arrays, clients, counter = restored(tmp_path, checkpoint)
    assert arrays["w"].tolist() == [[1, 1], [1, 1]] and (clients.memory, counter) == (1, [1])
    assert to_tensors(clients.contexts[0].state.array_records["own"])["v"].tolist() == [1, -1]


def test_all_files_of_a_checkpoint_are_among_those_that_were_damaged_above(tmp_path: Path) -> None:
    save(new(tmp_path), 1)
    found = {path for path in (tmp_path / "round-1").rglob("*") if path.is_file()}
    assert found == {path for pattern in FILES for path in (tmp_path / "round-1").glob(pattern)}


def test_a_whole_folder_that_is_empty_is_damaged(tmp_path: Path) -> None:
    save(new(tmp_path), 1)
    (tmp_path / "round-2").mkdir()
    told: list[str] = []
    checkpoint = new(tmp_path).newest(told.append)
    assert checkpoint is not None and checkpoint.server_round == 1 and len(told) == 1


def test_if_all_are_damaged_each_is_told_and_there_is_none(tmp_path: Path) -> None:
    save(new(tmp_path), 1, 2)
    for number in (1, 2):
        cut(tmp_path / f"round-{number}" / "process-0.safetensors")
    told: list[str] = []
    assert new(tmp_path).newest(told.append) is None
    assert [line.split(" is ")[0] for line in told] == [f"checkpoint {tmp_path / f'round-{n}'}" for n in (2, 1)]


def test_a_damaged_checkpoint_is_written_anew_when_its_round_is_done_again(tmp_path: Path) -> None:
    save(new(tmp_path), 1, 2)
    (tmp_path / "round-2" / "process-0.safetensors").unlink()
    second = new(tmp_path)
    checkpoint = second.newest(lambda message: None)
    assert checkpoint is not None
    second.restore(checkpoint, weights(0), Clients(), {"counter": Counter()})
    save(second, 2)
    assert restored(tmp_path)[0] == 2


@pytest.mark.parametrize("last", [1, 2])
def test_the_checkpoint_that_a_run_resumes_from_stays_until_there_is_a_newer_one(last: int, tmp_path: Path) -> None:
    """A run that is killed once more before its next checkpoint still finds that checkpoint."""
    save(new(tmp_path, last=9), 1, 2, 3)
    for number in (2, 3):
        cut(tmp_path / f"round-{number}" / "process-0.safetensors")
    for _ in range(2):
        reader = new(tmp_path, last=last)
        checkpoint = reader.newest(lambda message: None)
        assert checkpoint is not None and checkpoint.server_round == 1
        reader.restore(checkpoint, weights(0), Clients(), {"counter": Counter()})


# Arrays of clients


def place(folder: Path, node: int) -> tuple[int, int]:
    status = (folder / f"client-{node}-0.safetensors").stat()
    return status.st_ino, status.st_nlink


def test_arrays_that_stay_the_same_are_linked_and_others_written(tmp_path: Path) -> None:
    writer, clients = new(tmp_path), trained(1)
    save_all(writer, clients, 1, 2)
    first, second = tmp_path / "round-1", tmp_path / "round-2"
    assert place(first, 1) == place(second, 1) and place(second, 1)[1] == 2
    assert place(first, 0)[0] != place(second, 0)[0] and place(second, 0)[1] == 1
    assert not (second / "client-2-0.safetensors").exists()
    save_all(writer, clients, 3, 4)  # the first two are gone
    assert names(tmp_path) == ["round-3", "round-4"]
    assert place(tmp_path / "round-4", 1) == (place(tmp_path / "round-3", 1)[0], 2)
    assert to_tensors(restored(tmp_path)[2].contexts[1].state.array_records["own"])["v"].tolist() == [7]


def save_all(checkpointer: Checkpointer, clients: Clients, *numbers: int) -> None:
    """Write a checkpoint for each number; before each, client 0 alone stores new arrays."""
    for number in numbers:
        clients.contexts[0].state["own"] = to_record({"v": torch.tensor([float(number), -1.0])})
        checkpointer.save(number, weights(number), clients, {"counter": Counter()}, None)


def test_arrays_that_are_on_the_disk_take_no_memory_besides(tmp_path: Path) -> None:
    tensor = torch.tensor([3.0])
    gone, clients = weakref.ref(tensor), trained(1)
    clients.contexts[0].state["own"] = to_record({"v": tensor})
    del tensor
    new(tmp_path).save(1, weights(1), clients, {"counter": Counter()}, None)
    gc.collect()  # Flower's records refer to themselves
    assert gone() is None
    array = to_tensors(clients.contexts[0].state.array_records["own"])["v"]
    assert array.tolist() == [3]
    array.add_(1)  # does not reach the file
    assert to_tensors(restored(tmp_path)[2].contexts[0].state.array_records["own"])["v"].tolist() == [3]


def test_only_arrays_that_are_new_are_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    writer, clients = new(tmp_path), trained(1)
    sync = files.sync
    for module in (checkpointer, contexts):
        monkeypatch.setattr(module, "sync", lambda path: (synced.append(path.name), sync(path)))
    save_all(writer, clients, 1)
    assert {name for name in synced if name.startswith("client")} == {f"client-{k}-0.safetensors" for k in (0, 1)}
    synced.clear()
    save_all(writer, clients, 2)
    assert [name for name in synced if name.startswith("client")] == ["client-0-0.safetensors"]


def test_a_resumed_run_links_the_files_that_it_has_read(tmp_path: Path) -> None:
    save(new(tmp_path), 1)
    second, clients = new(tmp_path), Clients()
    checkpoint = second.newest(nobody)
    assert checkpoint is not None
    second.restore(checkpoint, weights(0), clients, {"counter": Counter()})
    clients.contexts[0].state["own"] = to_record({"v": torch.tensor([5.0, 5.0])})
    second.save(2, weights(2), clients, {"counter": Counter()}, None)
    first, new_one = tmp_path / "round-1", tmp_path / "round-2"
    assert place(new_one, 1) == (place(first, 1)[0], 2)
    assert place(new_one, 0)[0] != place(first, 0)[0]
    assert to_tensors(restored(tmp_path)[2].contexts[0].state.array_records["own"])["v"].tolist() == [5, 5]


def test_a_client_that_only_a_damaged_checkpoint_knows_is_forgotten(tmp_path: Path) -> None:
    writer, clients = new(tmp_path), Contexts(range(3))
    for number, nodes in ((1, [0]), (2, [1, 2])):
        for node in nodes:
            clients[node].state["own"] = to_record({"v": torch.tensor([float(node)])})
        writer.save(number, weights(number), Clients(clients), {"counter": Counter()}, None)
    (tmp_path / "round-2" / "client-2-0.safetensors").write_bytes(b"")
    second, later = new(tmp_path), Contexts(range(3))
    checkpoint = second.newest(lambda message: None)
    assert checkpoint is not None and checkpoint.server_round == 1
    second.restore(checkpoint, weights(0), Clients(later), {"counter": Counter()})
    second.save(2, weights(2), Clients(later), {"counter": Counter()}, None)
    assert [path.name for path in (tmp_path / "round-2").glob("client-*")] == ["client-0-0.safetensors"]


def test_a_client_that_stores_nothing_any_more_has_no_file(tmp_path: Path) -> None:
    writer, clients = new(tmp_path), trained(1)
    writer.save(1, weights(1), clients, {"counter": Counter()}, None)
    clients.contexts[1].state["own"] = ArrayRecord()
    writer.save(2, weights(2), clients, {"counter": Counter()}, None)
    assert not (tmp_path / "round-2" / "client-1-0.safetensors").exists()
    assert len(restored(tmp_path)[2].contexts[1].state["own"]) == 0
    clients.contexts[1].state["own"] = SAME
    writer.save(3, weights(3), clients, {"counter": Counter()}, None)
    assert len(restored(tmp_path)[2].contexts[1].state["own"]) == 1


def test_a_client_that_stores_again_what_it_had_dropped_has_a_file(tmp_path: Path) -> None:
    writer, clients = new(tmp_path, last=1), Clients()
    for number, record in ((1, SAME), (2, ArrayRecord()), (3, SAME)):
        clients.contexts[1].state["own"] = record
        writer.save(number, weights(number), clients, {"counter": Counter()}, None)
    assert to_tensors(restored(tmp_path)[2].contexts[1].state.array_records["own"])["v"].tolist() == [7]


def test_a_record_that_a_client_changes_in_place_is_written(tmp_path: Path) -> None:
    """Flower's simulation moves a context to another process and back, so a client may put arrays into its record."""
    writer, clients = new(tmp_path), trained(1)
    writer.save(1, weights(1), clients, {"counter": Counter()}, None)
    clients.contexts[0].state.array_records["own"]["v"] = TensorArray(torch.tensor([5.0]))
    writer.save(2, weights(2), clients, {"counter": Counter()}, None)
    assert to_tensors(restored(tmp_path)[2].contexts[0].state.array_records["own"])["v"].tolist() == [5]


def test_a_second_record_beside_one_that_stays_is_written(tmp_path: Path) -> None:
    writer, clients = new(tmp_path), trained(1)
    writer.save(1, weights(1), clients, {"counter": Counter()}, None)
    clients.contexts[1].state["more"] = to_record({"m": torch.tensor([9.0])})
    writer.save(2, weights(2), clients, {"counter": Counter()}, None)
    state = restored(tmp_path)[2].contexts[1].state
    assert {key: [t.tolist() for t in to_tensors(r).values()] for key, r in state.array_records.items()} == {
        "own": [[7]],
        "more": [[9]],
    }


def test_where_the_file_system_has_no_links_there_are_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*arguments: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    save(new(tmp_path), 1, 2)
    assert place(tmp_path / "round-1", 1)[0] != place(tmp_path / "round-2", 1)[0]
    assert to_tensors(restored(tmp_path)[2].contexts[1].state.array_records["own"])["v"].tolist() == [7]


def test_client_files_read_what_they_wrote(tmp_path: Path) -> None:
    context = trained(1).contexts[0]
    assert ClientFiles().write(tmp_path / "file", 0, context)
    found = ClientFiles().read(tmp_path / "file", 0)
    assert to_tensors(found["own"])["v"].tolist() == [1, -1]
    assert not ClientFiles().write(tmp_path / "none", 2, trained(1).contexts[2])
    with pytest.raises(serialize.Damaged, match="none"):
        ClientFiles().read(tmp_path / "none", 2)


# A disk that refuses


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


# Several processes


def sharded(seed: int, groups: int) -> tuple[Any, Mesh]:
    mesh = arrange(groups, torch.device("cpu"))
    seed_globals(seed, "model")
    policy = load_policy(ModelSettings(), Placement(torch.device("cpu"), mesh), layout=Layout(), max_length=64)
    return policy.model, mesh


def in_process(folder: Path, groups: int, mesh: Mesh, model: nn.Module) -> Checkpointer:
    return Checkpointer(folder, mesh, Shards(model), RUN, every=1, last=2, num_rounds=9)


def parts_of(model: nn.Module, scale: float) -> dict[str, torch.Tensor]:
    """Return this process's part of each weight, times `scale`."""
    return {
        name: (weight.to_local() if hasattr(weight, "to_local") else weight).detach() * scale
        for name, weight in model.named_parameters()
    }


def of_several(folder: Path, groups: int) -> dict[str, Any]:
    """Save two rounds in each process, and read them with a new checkpointer."""
    model, mesh = sharded(0, groups)
    index = mesh.world.index
    writer = in_process(folder, groups, mesh, model)
    for number in (1, 2):
        clients = Clients()
        clients.contexts[index].state["own"] = to_record({"v": torch.tensor([10.0 * number + index])})
        counter = Counter(f"round {number} of process {index}")
        writer.save(
            number, to_record(parts_of(model, number)), clients, {"counter": counter}, {"test_accuracy": 1 / number}
        )
    reader, clients, counter = in_process(folder, groups, mesh, model), Clients(), Counter()
    checkpoint = reader.newest(nobody)
    assert checkpoint is not None
    zeros = to_record({name: torch.zeros_like(part) for name, part in parts_of(model, 1.0).items()})
    found = to_tensors(reader.restore(checkpoint, zeros, clients, {"counter": counter}))
    expected = parts_of(model, 2.0)
    own = [(n, to_tensors(r)) for n, c in enumerate(clients.contexts) for r in c.state.array_records.values()]
    return {
        "names": found.keys() == expected.keys(),
        "weights": all(torch.equal(found[name], expected[name]) for name in expected),
        "counter": counter.value,
        "own": {node: tensors["v"].tolist() for node, tensors in own if tensors},
    }


def newest_of_several(folder: Path, groups: int) -> tuple[int | None, list[str]]:
    model, mesh = sharded(0, groups)
    told: list[str] = []
    checkpoint = in_process(folder, groups, mesh, model).newest(told.append)
    return None if checkpoint is None else checkpoint.server_round, told


@pytest.mark.parametrize("groups", [1, 2])
def test_two_processes_keep_their_own_parts_and_find_each_others_damage(groups: int, tmp_path: Path) -> None:
    first, second = in_ranks(2, of_several, tmp_path, groups)
    assert first["names"] and second["names"] and first["weights"] and second["weights"]
    assert (first["counter"], second["counter"]) == ("round 2 of process 0", "round 2 of process 1")
    assert (first["own"], second["own"]) == ({0: [20]}, {1: [21]})
    assert os.readlink(tmp_path / "best") == "round-1"
    files = sorted(
        str(path.relative_to(tmp_path / "round-2")) for path in (tmp_path / "round-2").rglob("*.safetensors")
    )
    assert [name for name in files if "weights" not in name] == [
        "client-0-0.safetensors", "client-1-1.safetensors", "process-0.safetensors", "process-1.safetensors",
    ]  # fmt: skip
    shards = [name for name in files if "weights" in name]
    assert len(shards) == (2 if groups == 1 else 1)  # two groups hold the same: one writes

    for name in (shards[-1], "client-1-1.safetensors", "process-0.safetensors"):
        content = (tmp_path / "round-2" / name).read_bytes()
        flip_last(tmp_path / "round-2" / name)
        found = in_ranks(2, newest_of_several, tmp_path, groups)
        assert [server_round for server_round, _ in found] == [1, 1]
        assert found[0] == found[1] and len(found[0][1]) == 1 and Path(name).name in found[0][1][0]
        (tmp_path / "round-2" / name).write_bytes(content)
    assert [server_round for server_round, _ in in_ranks(2, newest_of_several, tmp_path, groups)] == [2, 2]


def newest_of_more(folder: Path) -> str:
    model, mesh = sharded(0, 1)
    checkpointer = Checkpointer(
        folder, mesh, Shards(model), {"processes": mesh.world.count}, every=1, last=2, num_rounds=9
    )
    try:
        checkpointer.newest(nobody)
    except CannotContinue as error:
        return str(error)
    return ""


def test_a_run_of_fewer_processes_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    """A checkpoint of one process has no file for the second."""
    model = nn.Linear(2, 1)
    alone = Checkpointer(tmp_path, ONE_PROCESS, Shards(model), {"processes": 1}, every=1, last=2, num_rounds=9)
    alone.save(1, weights(1), Clients(), {}, None)
    expected = f"{tmp_path / 'round-1'} is of a run whose processes was 1, here it is 2"
    assert in_ranks(2, newest_of_more, tmp_path) == [expected] * 2
