"""Several processes for one test: forked, so that they start within a second, and joined through a file."""

import faulthandler
import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from support.forked import forking

SECONDS = 20  # that one process waits for the others: a test of processes that wait for each other fails, and ends


def in_ranks(count: int, work: Callable[..., Any], *arguments: Any, **named: Any) -> list[Any]:
    """Run `work(*arguments, **named)` in `count` joined processes and return the results; raise the error of any."""
    if torch.cuda.is_available():
        pytest.skip("a forked process cannot train once a GPU is in use; set CUDA_VISIBLE_DEVICES= to run this")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with forking():
                mp.start_processes(_rank, (count, folder, work, arguments, named), nprocs=count, start_method="fork")
        except mp.ProcessExitedException as error:
            error.add_note("".join(path.read_text() for path in Path(folder).glob("crash-*")))
            raise
        return [torch.load(Path(folder, str(rank)), weights_only=False) for rank in range(count)]


def _rank(
    rank: int, count: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with open(Path(folder, f"crash-{rank}"), "w") as crash:
        faulthandler.enable(crash)
        _work(rank, count, folder, work, arguments, named)


def _work(
    rank: int, count: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...], named: dict[str, Any]
) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder, "store")), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=SECONDS))
    torch.save(work(*arguments, **named), Path(folder, str(rank)))
    dist.barrier()
    dist.destroy_process_group()
