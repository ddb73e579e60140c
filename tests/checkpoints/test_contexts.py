import errno
import gc
import os
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord

from fed import files
from fed.checkpoints import checkpointer, contexts, serialize
from fed.checkpoints.checkpointer import Checkpointer
from fed.checkpoints.contexts import ClientFiles, Contexts
from fed.model.arrays import TensorArray, to_record, to_tensors
from support.checkpoints import SAME, Clients, Counter, names, new, nobody, restored, save, trained, weights


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
