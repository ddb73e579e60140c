"""The global weights of a checkpoint as files in torch's distributed format.

They are safetensors files, one per process that holds a part, without pickle. Any number of processes writes them, and
any other number reads them.
"""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from fed.distributed.ranks import ONE_PROCESS, Mesh
from fed.distributed.shards import local

WEIGHTS = "weights"  # the folder of these files within that of a checkpoint


def write(tensors: Mapping[str, Tensor], folder: Path, mesh: Mesh) -> None:
    """Write the tensors; all processes of a group call it, each with whole tensors or, as DTensors, its parts.

    Raises:
        CheckpointException: If they cannot be written; `fed.files.writing` finds the disk's own message in it.
    """
    with _quiet():
        dcp_save(
            _apart(tensors),
            storage_writer=HuggingFaceStorageWriter(str(folder / WEIGHTS), save_distributed=True),
            process_group=mesh.own.group,
            no_dist=mesh.own.count == 1,
        )


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors; copy those that are views, which the file format cannot express."""
    found, memory = {}, set()
    for name, tensor in tensors.items():
        held = local(tensor)
        if held is tensor and (not tensor.is_contiguous() or held.data_ptr() in memory):
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        memory.add(held.data_ptr())
        found[name] = tensor
    return found


def files(folder: Path) -> list[Path]:
    """Return the files with the weights of a checkpoint."""
    return sorted((folder / WEIGHTS).glob("*.safetensors"))


def load(tensors: Mapping[str, Tensor], folder: Path, mesh: Mesh) -> None:
    """Fill the tensors, whole ones or DTensors, from a checkpoint; all processes of a group call it.

    Raises:
        ValueError: If the folder holds no readable checkpoint, or a tensor is missing or has another shape.
    """
    shapes = {name: shape for name, (shape, _) in held(folder).items()}
    for name, tensor in tensors.items():
        if shapes.get(name) != tuple(tensor.shape):
            raise ValueError(
                f"checkpoint {folder}: {name} has shape {shapes.get(name)}, expected {tuple(tensor.shape)}"
            )
    with _quiet():
        dcp_load(
            dict(tensors),
            storage_reader=HuggingFaceStorageReader(str(folder / WEIGHTS)),
            process_group=mesh.own.group,
            no_dist=mesh.own.count == 1,
        )


def is_checkpoint(folder: Path) -> bool:
    """Return whether the folder holds a checkpoint's weights."""
    return bool(files(folder))


def read(folder: Path) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint, whole and in float32.

    Raises:
        ValueError: If it cannot be read.
    """
    tensors = {name: torch.empty(size) for name, (size, _) in held(folder).items()}
    load(tensors, folder, ONE_PROCESS)
    return tensors


def held(folder: Path) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return the shape and dtype of each tensor of a checkpoint.

    Raises:
        ValueError: If the folder holds no readable checkpoint.
    """
    try:
        found: Mapping[str, Any] = HuggingFaceStorageReader(str(folder / WEIGHTS)).read_metadata().state_dict_metadata
        return {name: (tuple(tensor.size), tensor.properties.dtype) for name, tensor in found.items()}
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        raise ValueError(f"{folder} holds no readable checkpoint: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's remark that a single process is no distributed run."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled|.*assuming the intent is")
            yield
    finally:
        logger.setLevel(level)
