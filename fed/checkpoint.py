"""Checkpoints of the global weights, in torch's distributed format: written by any number of processes, read by any.

Safetensors files, one per process that holds a part; no pickle. A folder appears under its name when it is complete.
"""

import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from fed.ranks import ONE_PROCESS, Mesh

PARTIAL = ".partial"


def save(tensors: Mapping[str, Tensor], folder: Path, mesh: Mesh) -> None:
    """Write the tensors, of which each process gives all or, as a DTensor, its part; all processes call it.

    Then remove the checkpoints of other rounds beside it.

    Raises:
        OSError: If it cannot be written.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    if mesh.world.is_first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    mesh.world.gather(None)  # the folder is there
    if mesh.groups.is_first:  # the other groups hold the same
        with _quiet():
            dcp_save(
                dict(tensors),
                storage_writer=HuggingFaceStorageWriter(str(partial), save_distributed=True),
                process_group=mesh.own.group,
                no_dist=mesh.own.count == 1,
            )
    mesh.world.gather(None)  # every part is there
    if mesh.world.is_first:
        partial.rename(folder)
        for other in folder.parent.glob("round-*"):
            if other != folder:
                shutil.rmtree(other)
    mesh.world.gather(None)  # it is there under its name


def load(tensors: Mapping[str, Tensor], folder: Path, mesh: Mesh) -> None:
    """Fill these tensors, whole ones or DTensors, from a checkpoint; all processes of a group call it.

    Raises:
        ValueError: If the folder holds no such checkpoint, or lacks a tensor or has it in another shape.
    """
    held = sizes(folder)
    for name, tensor in tensors.items():
        if held.get(name) != tuple(tensor.shape):
            raise ValueError(f"checkpoint {folder}: {name} has shape {held.get(name)}, expected {tuple(tensor.shape)}")
    with _quiet():
        dcp_load(
            dict(tensors),
            storage_reader=HuggingFaceStorageReader(str(folder)),
            process_group=mesh.own.group,
            no_dist=mesh.own.count == 1,
        )


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder holds one."""
    return any(folder.glob("shard-*.safetensors"))


def read(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, whole, in float32.

    Raises:
        ValueError: If it cannot be read.
    """
    tensors = {name: torch.empty(size) for name, size in sizes(folder).items()}
    load(tensors, folder, ONE_PROCESS)
    return tensors


def sizes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a checkpoint.

    Raises:
        ValueError: If the folder holds none.
    """
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        raise ValueError(f"{folder} holds no readable checkpoint: {error}") from error
    return {name: tuple(tensor.size) for name, tensor in found.items()}  # type: ignore[union-attr]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that a single process is no distributed run."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled|.*assuming the intent is")
            yield
    finally:
        logger.setLevel(level)
