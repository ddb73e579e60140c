"""Outlines of what messages hold: small records whole, arrays by their name, shape and dtype only."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fed.model.arrays import copied, to_tensors


class ArrayOutline(NamedTuple):
    """An array without its numbers."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


Outline = Mapping[str, list[ArrayOutline] | ConfigRecord | MetricRecord]


def outline(content: RecordDict) -> Outline:
    """Return the outline of each record, by its key."""
    return {
        key: outline_arrays(record) if isinstance(record, ArrayRecord) else copied(record)
        for key, record in content.items()
    }


def outline_arrays(record: ArrayRecord) -> list[ArrayOutline]:
    """Return the name, shape and dtype of each array."""
    return [ArrayOutline(name, tuple(tensor.shape), tensor.dtype) for name, tensor in to_tensors(record).items()]


def filled(outlined: Outline, arrays: Callable[[str], ArrayRecord]) -> RecordDict:
    """Return the content that an outline describes; `arrays` makes each record of arrays from its key."""
    return RecordDict(
        {key: arrays(key) if isinstance(found, list) else copied(found) for key, found in outlined.items()}
    )
