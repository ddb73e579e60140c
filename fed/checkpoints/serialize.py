"""Nested values of numbers, text, arrays and Flower records in one safetensors file, without pickle.

Arrays are tensors of the file; the rest is JSON in its header, with a checksum of everything.
"""

import base64
import hashlib
import json
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fed.files import writing
from fed.model.arrays import TensorArray

RECORDS = {kind.__name__: kind for kind in (ArrayRecord, ConfigRecord, MetricRecord, RecordDict)}
# The dtypes that a safetensors file can hold.
DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
    torch.complex64,
}

CONTENT = "tree"  # the header's key of the JSON


class Damaged(ValueError):
    """A file that is missing or differs from what was written."""


def save(value: Any, path: Path) -> None:
    """Write the value; the file appears under its name when it is complete.

    It is not yet forced to the disk: see `fed.files.sync`.

    Raises:
        TypeError: If the value holds anything but numbers, text, arrays, records and containers of them.
        CannotWrite: If the disk refuses the file.
    """
    text, tensors = _pack(value)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with writing(path):
            save_file(tensors, partial, {CONTENT: text, "sha256": _digest(text, tensors)})
            partial.replace(path)
    finally:
        with suppress(OSError):  # it is not there, or the disk is in no state to remove it
            partial.unlink()


def load(path: Path) -> Any:
    """Return the value that was saved.

    Raises:
        Damaged: If the file is missing, cut off, or differs in any bit from what was written.
    """
    try:
        metadata, tensors = _opened(path)
        if metadata["sha256"] != _digest(metadata[CONTENT], tensors):
            raise Damaged(f"{path.name} is not as it was written: its checksum differs")
        return _unpack(json.loads(metadata[CONTENT]), tensors)
    except Damaged:
        raise
    except Exception as error:  # whatever a damaged or foreign file makes the readers raise
        raise Damaged(f"{path.name} cannot be read: {error}") from error


def mapped(path: Path) -> Any:
    """Return the value that was just saved, with arrays that are read from the file only when they are used.

    Until then they take no memory. While they are in use the file may be removed but not truncated. Changes to them do
    not reach the file.
    """
    metadata, tensors = _opened(path)
    return _unpack(json.loads(metadata[CONTENT]), tensors)


def _opened(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    return metadata, dict(sorted(tensors.items(), key=lambda item: int(item[0])))


@dataclass(frozen=True)
class Packed:
    """A part of several values, without arrays, that is packed only once."""

    content: Any


def packed(value: Any) -> Packed:
    """Pack a value that is to be a part of others; later changes to it have no effect."""
    packer = _Packer()
    content = packer.pack(value)
    assert not packer.tensors
    return Packed(content)


def is_packable(value: Any) -> bool:
    """Return True if `save` accepts this value."""
    try:
        _pack(value)
    except TypeError:
        return False
    return True


def _pack(value: Any) -> tuple[str, dict[str, Tensor]]:
    packer = _Packer()
    try:
        text = json.dumps(packer.pack(value))
    except (RecursionError, ValueError) as error:  # it holds itself, or a number of thousands of digits
        raise TypeError(f"{type(value).__name__} cannot be saved: {error}") from error
    return text, {str(number): tensor for number, tensor in enumerate(packer.tensors)}


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name, tensor in tensors.items():
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.numel():  # without numbers a stride may be anything, which no view as bytes takes
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _Packer:
    """An encoder of values as JSON and arrays; an array that stands in several places is stored once."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._places: dict[int, int] = {}
        self._owners: list[Any] = []  # holds them, so that no id is used twice
        self._memory: set[int] = set()

    def pack(self, value: Any) -> Any:
        """Return lists, text, numbers and None unchanged, anything else as an object whose only key names its kind."""
        if value is None or type(value) in (str, bool, int, float):
            return value
        for kind, pack in PACKERS:
            # A subclass of a container would come back as the plain one, which its owner may not take.
            if type(value) in kind if isinstance(kind, tuple) else isinstance(value, kind):
                return pack(self, value)
        raise TypeError(f"{type(value).__name__} cannot be saved")

    def items(self, value: Mapping[Any, Any]) -> list[Any]:
        """Return pairs of key and value, in order."""
        return [[self.pack(key), self.pack(item)] for key, item in value.items()]

    def place(self, owner: Any, tensor: Tensor) -> int:
        """Return the number under which a tensor is stored; `owner` is the object that holds it."""
        if id(owner) not in self._places:
            self._owners.append(owner)
            if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in DTYPES:
                raise TypeError(f"a tensor of {tensor.dtype}, {tensor.layout} cannot be saved")
            tensor = tensor.detach().cpu().resolve_conj().contiguous()
            whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
            if not whole or tensor.data_ptr() in self._memory:  # the file's format knows no views
                tensor = tensor.clone()
            self._memory.add(tensor.data_ptr())
            self._places[id(owner)] = len(self.tensors)
            self.tensors.append(tensor)
        return self._places[id(owner)]


def _pack_numpy(packer: _Packer, value: np.ndarray) -> Any:
    if value.dtype == object or value.dtype.kind in "USVMm" or not value.dtype.isnative:
        raise TypeError(f"an array of {value.dtype} cannot be saved")
    tensor = torch.from_numpy(np.require(value, requirements=["C", "W"]))  # torch warns of memory not to be written
    return {"numpy": [packer.place(value, tensor), str(value.dtype)]}


def _pack_array(packer: _Packer, value: Array) -> Any:
    tensor = value.tensor if isinstance(value, TensorArray) else torch.from_numpy(value.numpy())
    return {"array": packer.place(value, tensor)}


PACKERS: list[tuple[Any, Callable[[_Packer, Any], Any]]] = [
    ((Packed,), lambda _, value: value.content),
    ((list,), lambda packer, value: [packer.pack(item) for item in value]),
    ((tuple,), lambda packer, value: {"tuple": [packer.pack(item) for item in value]}),
    ((set,), lambda packer, value: {"set": [packer.pack(item) for item in value]}),
    ((bytes,), lambda _, value: {"bytes": base64.b64encode(value).decode()}),
    (Tensor, lambda packer, value: {"tensor": packer.place(value, value)}),
    (np.generic, lambda packer, value: {"scalar": _pack_numpy(packer, np.asarray(value))["numpy"]}),
    ((np.ndarray,), _pack_numpy),
    (Array, _pack_array),
    (np.random.Generator, lambda packer, value: {"Generator": packer.pack(value.bit_generator.state)}),
    (random.Random, lambda packer, value: {"Random": packer.pack(value.getstate())}),
    *((kind, lambda packer, value, name=name: {name: packer.items(value)}) for name, kind in RECORDS.items()),
    ((dict, OrderedDict), lambda packer, value: {"dict": packer.items(value)}),
]


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that `_Packer.pack` turned into this one."""
    if isinstance(value, list):
        return [_unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return UNPACKERS[kind](content, tensors)


def _unpack_numpy(content: Any, tensors: Mapping[str, Tensor]) -> Any:
    place, dtype = content
    return tensors[str(place)].numpy().astype(dtype, copy=False)


def _unpack_generator(content: Any, tensors: Mapping[str, Tensor]) -> np.random.Generator:
    state = _unpack(content, tensors)
    bits = getattr(np.random, state["bit_generator"])()
    bits.state = state
    return np.random.Generator(bits)


def _unpack_random(content: Any, tensors: Mapping[str, Tensor]) -> random.Random:
    generator = random.Random()
    generator.setstate(_unpack(content, tensors))
    return generator


def _unpack_dict(content: Any, tensors: Mapping[str, Tensor]) -> dict[Any, Any]:
    return {_unpack(key, tensors): _unpack(item, tensors) for key, item in content}


def _unpack_record(content: Any, tensors: Mapping[str, Tensor], kind: str) -> Any:
    record = RECORDS[kind]()
    for key, item in _unpack_dict(content, tensors).items():
        record[key] = item  # one by one: given a dictionary, `ArrayRecord` serialises every value
    return record


UNPACKERS: dict[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "tuple": lambda content, tensors: tuple(_unpack(item, tensors) for item in content),
    "set": lambda content, tensors: {_unpack(item, tensors) for item in content},
    "bytes": lambda content, _: base64.b64decode(content),
    "tensor": lambda content, tensors: tensors[str(content)],
    "scalar": lambda content, tensors: _unpack_numpy(content, tensors)[()],
    "numpy": _unpack_numpy,
    "array": lambda content, tensors: TensorArray(tensors[str(content)]),
    "Generator": _unpack_generator,
    "Random": _unpack_random,
    **{kind: partial(_unpack_record, kind=kind) for kind in RECORDS},
    "dict": _unpack_dict,
}
