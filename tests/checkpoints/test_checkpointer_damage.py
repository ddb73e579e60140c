import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fed.model.arrays import to_tensors
from support.checkpoints import Clients, Counter, cut, flip_last, new, restored, save, weights


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
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
