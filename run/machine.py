"""The computation of a run: threads and memory, the model, and the library that multiplies matrices."""

import os
from dataclasses import replace

import torch

from fed.config.schema import Config
from fed.cpu.matmul import Choice, choose_library
from fed.cpu.runtime import set_up
from fed.data.collate import Layout
from fed.distributed.launch import is_rank, local_ranks
from fed.distributed.ranks import Mesh, Ranks
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import Policy
from fed.seeding import seed_globals


def set_up_torch(config: Config) -> str:
    """Set threads and memory before anything large is allocated, and describe them."""
    torch.use_deterministic_algorithms(config.deterministic)
    if config.deterministic:  # read by cuBLAS; without it torch refuses matrix products on a GPU
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    processes, sharded = local_ranks(), config.trainer == "FSDPTrainer" and is_rank()
    return set_up(config.num_threads, keep_freed=config.keep_freed_memory, processes=processes, sharded=sharded)


def make_policy(config: Config, device: torch.device, mesh: Mesh) -> Policy:
    """Load the model that the settings name, its weights drawn from the seed where they are random."""
    seed_globals(config.seed, "model")
    return load_policy(
        replace(config.model, fsdp_policy_mp=config.precision or config.model.fsdp_policy_mp),
        Placement(device, mesh, config.trainer == "TensorParallelTrainer", config.cpu_offload),
        lora=config.lora,
        layout=Layout(packing=config.packing, prefix_sharing=config.prefix_sharing, fused_head=config.fused_head),
        max_length=config.max_length,
        activation_checkpointing=config.activation_checkpointing,
    )


def choose_matmul(policy: Policy, config: Config, world: Ranks) -> Choice | None:
    """Choose the library that multiplies float32 matrices on a CPU; None if there are none.

    Raises:
        ValueError: If `cpu_matmul` was given and has no effect.
    """
    if policy.device.type != "cpu" or policy.compute_dtype is not None or policy.model.dtype != torch.float32:
        if config.cpu_matmul != "auto":
            dtype = str(policy.compute_dtype or policy.model.dtype).removeprefix("torch.")
            raise ValueError(
                f"cpu_matmul={config.cpu_matmul} has no effect with {dtype} on {policy.device}; leave it out"
            )
        return None

    wanted = config.cpu_matmul
    if policy.holders.count > 1 and policy.root is None:
        if wanted == "onednn":
            raise ValueError("cpu_matmul=onednn has no effect on layers that processes share; leave it out")
        wanted = "mkl"

    def choose(wanted: str) -> Choice:
        return choose_library(policy.model, wanted, cache_dir=config.cache_dir, deterministic=config.deterministic)

    choice = world.from_first_or_raise(lambda: choose(wanted))
    if not world.is_first:  # the same in all processes: libraries differ in the last bits
        choose(choice.library or "auto")
    return choice
