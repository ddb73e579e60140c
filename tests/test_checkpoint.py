"""Checkpoints: by how many processes they are written and read does not matter."""

from pathlib import Path

import pytest
import torch
from ranks import in_ranks
from torch import Tensor

from fed import checkpoint
from fed.collate import Layout
from fed.config import ModelSettings
from fed.loading import load_policy
from fed.ranks import ONE_PROCESS, arrange
from fed.seeding import seed_globals
from fed.sharding import local, whole_state

CPU = torch.device("cpu")


def weights(seed: int, groups: int) -> tuple[dict[str, Tensor], object]:
    mesh = arrange(groups, CPU)
    seed_globals(seed, "model")
    policy = load_policy(ModelSettings(), device=CPU, layout=Layout(), max_length=64, mesh=mesh)
    return {name: weight.detach() for name, weight in policy.model.named_parameters()}, mesh


def write(folder: Path, groups: int = 1) -> dict[str, Tensor]:
    tensors, mesh = weights(0, groups)
    checkpoint.save(tensors, folder, mesh)
    assert folder.is_dir()
    return whole_state(tensors, keep=True)


def read(folder: Path) -> dict[str, Tensor]:
    tensors, mesh = weights(1, 1)
    for tensor in tensors.values():
        local(tensor).fill_(torch.nan)
    checkpoint.load(tensors, folder, mesh)
    return whole_state(tensors, keep=True)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("writers", "groups", "readers"), [(1, 1, 2), (2, 1, 3), (3, 1, 1), (4, 2, 2), (2, 2, 1)])
def test_what_some_processes_write_others_read_to_the_bit(tmp_path: Path, writers: int, groups: int, readers: int):
    folder = tmp_path / "round-1"
    written = (in_ranks(writers, write, folder, groups) if writers > 1 else [write(folder)])[0]
    assert len(list(folder.iterdir())) == writers // groups
    found = in_ranks(readers, read, folder) if readers > 1 else [read(folder)]
    assert all(same(written, state) for state in found)
    assert same(written, checkpoint.read(folder))


def test_a_new_checkpoint_takes_the_place_of_the_one_before(tmp_path: Path):
    tensor = {"a": torch.arange(3.0)}
    (tmp_path / "round-3.partial").mkdir()  # of a run that was killed
    for number in (2, 3):
        checkpoint.save(tensor, tmp_path / f"round-{number}", ONE_PROCESS)
    assert [path.name for path in tmp_path.iterdir()] == ["round-3"]


def test_what_does_not_fit_is_refused_with_its_name(tmp_path: Path):
    checkpoint.save({"a": torch.zeros(3)}, tmp_path / "round-1", ONE_PROCESS)
    with pytest.raises(ValueError, match=r"a has shape \(3,\), expected \(4,\)"):
        checkpoint.load({"a": torch.zeros(4)}, tmp_path / "round-1", ONE_PROCESS)
    with pytest.raises(ValueError, match="b has shape None"):
        checkpoint.load({"b": torch.zeros(3)}, tmp_path / "round-1", ONE_PROCESS)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path):
    checkpoint.save({"a": torch.zeros(3)}, tmp_path / "round-1", ONE_PROCESS)
    (file,) = (tmp_path / "round-1").iterdir()
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="no readable checkpoint"):
        checkpoint.read(tmp_path / "round-1")
