"""Decides how many processes a run uses, and refuses settings that do not suit that number."""

import torch

from fed.config.schema import Config
from fed.distributed.ranks import Mesh


def num_processes(config: Config) -> int:
    """Return how many processes a run on this machine uses.

    Raises:
        ValueError: If the configuration asks for numbers that do not go together.
    """
    on_gpus = (config.device or "cuda").startswith("cuda") and torch.cuda.is_available()
    usual = max(torch.cuda.device_count(), 1) if on_gpus and config.trainer != "BasicTrainer" else 1
    if config.engine == "ray":
        return 1  # Ray starts the others
    count = config.trainer_processes or max(usual, config.clients_in_parallel)
    if count % config.clients_in_parallel:
        raise ValueError(
            f"clients_in_parallel={config.clients_in_parallel} does not divide trainer_processes={count}; every group "
            "of processes that trains a client needs the same number"
        )
    check_trainer(config, count)
    return count


def check_trainer(config: Config, count: int) -> None:
    """Refuse several processes for a client whose trainer uses one.

    Raises:
        ValueError: If so.
    """
    if config.trainer == "BasicTrainer" and count > config.clients_in_parallel:
        raise ValueError(
            f"{count} processes for clients_in_parallel={config.clients_in_parallel}, but trainer=BasicTrainer gives "
            f"each client one; use trainer=FSDPTrainer, or clients_in_parallel={count}"
        )


def check_mesh(mesh: Mesh, config: Config, given: frozenset[str]) -> None:
    """Refuse settings that have no effect with these processes, or leave some of them without work.

    Raises:
        ValueError: If there is such a setting.
    """
    check_trainer(config, mesh.world.count)
    for key, alone in (
        ("process_timeout", mesh.world.count == 1 and config.engine == "local"),
        ("cpu_offload", mesh.own.count == 1),
    ):
        if key in given and alone:
            raise ValueError(f"{key} has no effect in a run of one process; leave it out")
    pairs = config.batch_size // config.gradient_accumulation_steps
    if config.trainer == "FSDPTrainer" and config.max_tokens_per_step is None and pairs < mesh.own.count:
        raise ValueError(
            f"batch_size={config.batch_size} in gradient_accumulation_steps={config.gradient_accumulation_steps} parts "
            f"leaves {pairs} pairs for {mesh.own.count} processes that share a model; raise batch_size, or lower "
            "gradient_accumulation_steps or the number of processes"
        )
    if not config.privacy.seeded_noise and mesh.world.count > 1:
        raise ValueError(
            f"privacy.seeded_noise=false in {mesh.world.count} processes, each of which would draw noise of its own; "
            "use one process"
        )
