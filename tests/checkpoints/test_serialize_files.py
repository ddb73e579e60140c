"""Damage to a saved file is found, and a failed write leaves the old file."""

import errno
import os
import random
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from fed.checkpoints import serialize
from fed.checkpoints.serialize import Damaged
from fed.errors import CannotWrite
from fed.files import sync
from support.saved import there_and_back


def small_file(folder: Path) -> tuple[Path, bytes]:
    serialize.save({"n": 1.5, "w": torch.arange(2.0)}, folder / "saved")
    return folder / "saved", (folder / "saved").read_bytes()


def test_every_flipped_bit_of_a_file_is_found(tmp_path: Path):
    file, content = small_file(tmp_path)
    assert len(content) < 300
    with file.open("r+b", buffering=0) as written:
        for place in range(8 * len(content)):
            changed = content[place // 8] ^ 1 << place % 8
            os.pwrite(written.fileno(), bytes([changed]), place // 8)
            with pytest.raises(Damaged, match=r"^saved "):
                serialize.load(file)
            os.pwrite(written.fileno(), content[place // 8 : place // 8 + 1], place // 8)
    assert serialize.load(file)["n"] == 1.5


def test_every_cut_and_every_addition_is_found(tmp_path: Path):
    file, content = small_file(tmp_path)
    for added in (b"\0", b" ", content):
        file.write_bytes(content + added)
        with pytest.raises(Damaged):
            serialize.load(file)
    for length in reversed(range(len(content))):
        os.truncate(file, length)
        with pytest.raises(Damaged):
            serialize.load(file)


def test_damage_anywhere_in_a_large_file_is_found(tmp_path: Path):
    file = tmp_path / "saved"
    serialize.save({f"w{k}": torch.full((50_000,), float(k)) for k in range(4)}, file)
    content = file.read_bytes()
    rng = random.Random(0)
    for place in (*rng.sample(range(len(content)), 40), len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(Damaged):
            serialize.load(file)
        file.write_bytes(content[:place])
        with pytest.raises(Damaged):
            serialize.load(file)


def test_a_missing_or_foreign_file_is_damaged_too(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"0": torch.zeros(2)}, tmp_path / "foreign")
    (tmp_path / "folder").mkdir()
    for name in ("missing", "foreign", "folder"):
        with pytest.raises(Damaged, match=name):
            serialize.load(tmp_path / name)


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path: Path):
    assert there_and_back([1], tmp_path) == [1]
    assert there_and_back([2, 2], tmp_path) == [2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CannotWrite),
        (OSError(errno.EIO, "Input/output error"), CannotWrite),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
    ],
    ids=["full", "broken", "interrupt", "memory"],
)
def test_what_stops_the_writing_leaves_the_old_file_and_nothing_else(
    error: BaseException, expected: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    serialize.save({"w": torch.ones(2)}, tmp_path / "saved")

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(serialize, "save_file", half)
    for name in ("saved", "other"):
        with pytest.raises(expected) as raised:
            serialize.save({"w": torch.zeros(2)}, tmp_path / name)
        if expected is CannotWrite:
            assert str(raised.value) == f"cannot write {tmp_path / name}: {error.args[1]}"  # type: ignore[index]
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert serialize.load(tmp_path / "saved")["w"].tolist() == [1, 1]


def test_the_file_is_under_another_name_until_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []
    write = serialize.save_file

    def watched(tensors: Any, path: Path, metadata: Any) -> None:
        write(tensors, path, metadata)
        seen.append([found.name for found in tmp_path.iterdir()])

    monkeypatch.setattr(serialize, "save_file", watched)
    serialize.save(1, tmp_path / "saved")
    assert seen == [["saved.partial"]]


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path: Path):
    with pytest.raises(CannotWrite, match=r"cannot write .*saved: No such file or directory$"):
        serialize.save(1, tmp_path / "none" / "saved")


def test_a_disk_that_refuses_to_remove_too_is_told_as_one_that_refuses(tmp_path: Path):
    """A read-only disk refuses likewise; here the folder is a file."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWrite, match=r"cannot write .*saved: "):
        serialize.save(1, tmp_path / "file" / "saved")


def test_what_the_library_itself_says_of_a_disk_that_takes_no_more_is_understood(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(CannotWrite, match=r"saved: File too large$"):
            serialize.save(torch.zeros(10_000), tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_sync_takes_files_and_folders(tmp_path: Path):
    serialize.save(1, tmp_path / "saved")
    sync(tmp_path / "saved")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "none")
