"""Conversion between a model's weights and Flower's `ArrayRecord`, without serialising inside one process."""

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from numpy.typing import NDArray
from torch import Tensor, nn

from fed.distributed.shards import local
from fed.model.lora import has_adapter

R = TypeVar("R", bound=ArrayRecord | ConfigRecord | MetricRecord)


class TensorArray(Array):
    """A Flower `Array` that holds a tensor and becomes bytes only when something asks for them.

    `numpy()` returns a fresh copy, as Flower's own does, so a strategy may write into it. `tensor` is not copied.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.dtype = str(tensor.dtype).removeprefix("torch.")
        self.shape = tuple(tensor.shape)
        self.stype = "numpy.ndarray"

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The tensor in numpy's file format."""
        return Array.from_numpy_ndarray(self.tensor.cpu().numpy()).data

    def deflate(self) -> bytes:
        """Return the bytes that Flower's own `Array` of these values would send; they name the class."""
        return Array.from_numpy_ndarray(self.tensor.cpu().numpy()).deflate()

    def numpy(self) -> NDArray[Any]:
        """Copy the tensor into a numpy array."""
        return np.array(self.tensor.cpu().numpy())


class RemoteArrays(ArrayRecord):
    """A record in place of arrays that another group of processes holds; `like` has their names and shapes."""

    def __init__(self, like: ArrayRecord) -> None:
        super().__init__()
        self.like = like


def standing_for(record: ArrayRecord) -> ArrayRecord:
    """Return arrays with the names and shapes of those that the record holds or stands for."""
    return record.like if isinstance(record, RemoteArrays) else record


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that travel, by name: trainable parameters and persistent float buffers, not copied.

    A process that holds a part of the model returns its part of each tensor. A tied tensor is listed once. Integer
    buffers do not travel: a mean of counters means nothing. Nor do buffers of a model with an adapter: they belong to
    its frozen part.
    """
    tensors = {
        name: local(parameter.detach()) for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if has_adapter(model):
        return tensors
    persistent = model.state_dict(keep_vars=True).keys()
    for name, buffer in model.named_buffers():
        if name in persistent and buffer.is_floating_point():
            tensors[name] = buffer
    return tensors


def snapshot(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Copy the tensors into a record, as float32: numpy, and so Flower, has no bfloat16."""
    return to_record({name: tensor.to(torch.float32, copy=True) for name, tensor in tensors.items()})


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Put the tensors into a record without copying them."""
    record = ArrayRecord()
    for name, tensor in tensors.items():  # one by one: given a dictionary, `ArrayRecord` serialises every value
        record[name] = TensorArray(tensor)
    return record


def copied(record: R) -> R:
    """Return a new record with the same values; arrays are not copied."""
    copy = type(record)()
    for key, value in record.items():  # one by one: given a dictionary, `ArrayRecord` serialises every value
        copy[key] = value  # type: ignore[assignment]
    return copy


def same_arrays(one: ArrayRecord, other: ArrayRecord) -> bool:
    """Return True if the records hold the same array objects; a client may put others into the same record."""
    return one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def to_tensors(record: ArrayRecord) -> dict[str, Tensor]:
    """Return the record's tensors: not copied if this process made it, decoded if it came from another."""
    return {
        name: array.tensor if isinstance(array, TensorArray) else torch.from_numpy(array.numpy())
        for name, array in record.items()
    }


@torch.no_grad()
def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds an infinity or a NaN, or will in float32; None: there is none."""
    held = ((name, tensor.aminmax()) for name, tensor in tensors.items() if tensor.numel())
    return next((name for name, extremes in held if not all(torch.isfinite(e.float()) for e in extremes)), None)


@torch.no_grad()
def load_arrays(model: nn.Module, record: ArrayRecord) -> None:
    """Copy the record into the model, cast to its dtypes (some of Flower's strategies return float64).

    Raises:
        ValueError: If a name or a shape does not match.
    """
    own, received = model_tensors(model), to_tensors(record)
    if own.keys() != received.keys():
        odd = sorted(own.keys() ^ received.keys())
        raise ValueError(f"received weights do not match the model: {len(odd)} names differ (first: {odd[0]})")
    for name, tensor in own.items():
        if tensor.shape != received[name].shape:
            raise ValueError(f"received {name} has shape {tuple(received[name].shape)}, expected {tuple(tensor.shape)}")
        tensor.copy_(received[name])
