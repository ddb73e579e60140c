"""FSDP over a single process computes what the plain model computes: by gloo on a CPU, by NCCL on a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from clients.optimizers import make_optimizer
from clients.settings import RoundSettings
from clients.step import Step
from fed.distributed.ranks import ALONE, ONE_PROCESS, Mesh, Ranks
from fed.distributed.shards import is_sharded, whole_state
from fed.model.policy import Policy
from run.machine import make_policy
from support.pairs import examples
from support.split_models import Saved, settings
from support.training import referenced
from support.training import settings as of_training


@pytest.fixture
def one_rank(device: torch.device) -> Iterator[Mesh]:
    """Join a group of this process alone, with the backends of a run."""
    if device.type == "cuda":
        torch.cuda.set_device(0)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    assert dist.group.WORLD is not None
    world = Ranks.of(dist.group.WORLD)
    yield Mesh(world, ALONE, world, DeviceMesh(device.type, torch.arange(1), mesh_dim_names=("shard",)))
    dist.destroy_process_group()


def trained(policy: Policy) -> tuple[list[float], dict[str, Tensor]]:
    """Return the losses of three steps of AdamW, and the weights after them."""
    step = Step(policy, of_training())
    optimizer = make_optimizer("AdamW", step.parameters.values(), 1e-2)
    pairs = referenced(policy, examples(6, vocabulary=31))
    losses = [step.take(optimizer, pairs, RoundSettings(), {})["loss"] for _ in range(3)]
    return losses, whole_state(policy.model.state_dict(), keep=True)


@pytest.mark.parametrize("family", ["llama, 31 tokens", "gpt2"])
@pytest.mark.parametrize("how", [{}, {"cpu_offload": True}, {"activation_checkpointing": True}], ids=str)
def test_one_rank_trains_what_the_plain_model_trains(
    saved: Saved, one_rank: Mesh, device: torch.device, family: str, how: dict[str, Any]
) -> None:
    plain = make_policy(settings(saved(family)), device, ONE_PROCESS)
    split = make_policy(settings(saved(family), **how), device, one_rank)
    assert is_sharded(split.model) and not is_sharded(plain.model)
    if how.get("cpu_offload") and device.type == "cuda":
        parts = [weight.to_local() for weight in split.model.parameters()]
        assert all(part.device.type == "cpu" and part.is_pinned() for part in parts)
        assert all(buffer.device.type == "cuda" for buffer in split.model.buffers())
    losses, weights = trained(split)
    expected, wanted = trained(plain)
    assert expected[0] > expected[-1]
    assert losses == pytest.approx(expected, rel=1e-4)
    for name, tensor in wanted.items():
        assert float((weights[name] - tensor).abs().max()) <= 1e-3 * float(tensor.abs().max()), name


def test_one_rank_in_bfloat16_is_near_float32(saved: Saved, one_rank: Mesh, device: torch.device) -> None:
    exact, _ = trained(make_policy(settings(saved("llama, tied")), device, ONE_PROCESS))
    losses, _ = trained(make_policy(settings(saved("llama, tied"), precision="bfloat16"), device, one_rank))
    assert losses != exact
    assert losses == pytest.approx(exact, rel=0.05)
