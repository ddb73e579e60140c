"""The global weights of a checkpoint: any number of processes writes them, and any other number reads them."""

import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fed.config.groups import ModelSettings
from fed.data.collate import Layout
from fed.distributed.ranks import ONE_PROCESS, arrange
from fed.distributed.shards import local, whole_state
from fed.errors import CannotWrite
from fed.files import writing
from fed.model import weight_files
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.seeding import seed_globals
from support.ranks import in_ranks

CPU = torch.device("cpu")


def weights(seed: int, groups: int) -> tuple[dict[str, Tensor], object]:
    mesh = arrange(groups, CPU)
    seed_globals(seed, "model")
    policy = load_policy(ModelSettings(), Placement(CPU, mesh), layout=Layout(), max_length=64)
    return {name: weight.detach() for name, weight in policy.model.named_parameters()}, mesh


def write(folder: Path, groups: int = 1) -> dict[str, Tensor]:
    tensors, mesh = weights(0, groups)
    weight_files.write(tensors, folder, mesh)
    return whole_state(tensors, keep=True)


def read(folder: Path) -> dict[str, Tensor]:
    tensors, mesh = weights(1, 1)
    for tensor in tensors.values():
        local(tensor).fill_(torch.nan)
    weight_files.load(tensors, folder, mesh)
    return whole_state(tensors, keep=True)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(("writers", "groups", "readers"), [(1, 1, 2), (2, 1, 3), (3, 1, 1), (4, 2, 2), (2, 2, 1)])
def test_what_some_processes_write_others_read_to_the_bit(tmp_path: Path, writers: int, groups: int, readers: int):
    folder = tmp_path / "round-1"
    written = (in_ranks(writers, write, folder, groups) if writers > 1 else [write(folder)])[0]
    assert len(weight_files.files(folder)) == writers // groups
    found = in_ranks(readers, read, folder) if readers > 1 else [read(folder)]
    assert all(same(written, state) for state in found)
    assert same(written, weight_files.read(folder))


def test_dtypes_and_shapes_come_back(tmp_path: Path):
    whole = torch.arange(10.0)
    tensors = {
        "double": torch.tensor([1 / 3], dtype=torch.float64),
        "half": torch.tensor([0.1], dtype=torch.bfloat16),
        "number": torch.tensor(2.5),
        "none": torch.zeros(0, 3),
        "part": whole[2:5],
        "odd.name/of it": torch.tensor([torch.nan]),
    }
    weight_files.write(tensors, tmp_path, ONE_PROCESS)
    expected = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    assert weight_files.held(tmp_path) == expected
    found = {name: torch.ones(shape, dtype=dtype) for name, (shape, dtype) in expected.items()}
    weight_files.load(found, tmp_path, ONE_PROCESS)
    for name, tensor in tensors.items():
        assert torch.equal(found[name].nan_to_num(9), tensor.nan_to_num(9)), name
    assert weight_files.read(tmp_path)["double"].tolist() == [float(torch.tensor(1 / 3))]  # in float32


@pytest.mark.parametrize("kind", ["strided", "shared"])
def test_a_strategy_may_return_arrays_that_are_views(kind: str, tmp_path: Path):
    whole = torch.arange(6.0).view(2, 3)
    tensors = {"strided": {"a": whole.T}, "shared": {"a": whole, "b": whole}}[kind]
    weight_files.write(tensors, tmp_path, ONE_PROCESS)
    found = weight_files.read(tmp_path)
    assert all(found[name].tolist() == tensor.tolist() for name, tensor in tensors.items())


def test_a_folder_without_weights_is_no_checkpoint(tmp_path: Path):
    assert not weight_files.is_checkpoint(tmp_path)
    with pytest.raises(ValueError, match="holds no readable checkpoint"):
        weight_files.held(tmp_path / "none")
    weight_files.write({"a": torch.zeros(1)}, tmp_path, ONE_PROCESS)
    assert weight_files.is_checkpoint(tmp_path)


def test_what_the_disk_refuses_is_raised_as_such(tmp_path: Path):
    """`fed.files.writing` finds the disk's own message in torch's exception."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(CannotWrite, match=r"cannot write there: File too large$"), writing(Path("there")):
            weight_files.write({"a": torch.zeros(10_000)}, tmp_path, ONE_PROCESS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_does_not_fit_is_refused_with_its_name(tmp_path: Path):
    weight_files.write({"a": torch.zeros(3)}, tmp_path / "round-1", ONE_PROCESS)
    with pytest.raises(ValueError, match=r"a has shape \(3,\), expected \(4,\)"):
        weight_files.load({"a": torch.zeros(4)}, tmp_path / "round-1", ONE_PROCESS)
    with pytest.raises(ValueError, match="b has shape None"):
        weight_files.load({"b": torch.zeros(3)}, tmp_path / "round-1", ONE_PROCESS)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path):
    weight_files.write({"a": torch.zeros(3)}, tmp_path / "round-1", ONE_PROCESS)
    (file,) = weight_files.files(tmp_path / "round-1")
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match="no readable checkpoint"):
        weight_files.read(tmp_path / "round-1")
