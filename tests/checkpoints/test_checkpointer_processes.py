import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fed.checkpoints.checkpointer import Checkpointer
from fed.config.groups import ModelSettings
from fed.data.collate import Layout
from fed.distributed.ranks import ONE_PROCESS, Mesh, arrange
from fed.distributed.shards import Shards
from fed.errors import CannotContinue
from fed.model.arrays import to_record, to_tensors
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.seeding import seed_globals
from support.checkpoints import RUN, Clients, Counter, flip_last, nobody, weights
from support.ranks import in_ranks


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
    expected = f"{tmp_path / 'round-1'} belongs to a run with another processes: 1, now 2"
    assert in_ranks(2, newest_of_more, tmp_path) == [expected] * 2
