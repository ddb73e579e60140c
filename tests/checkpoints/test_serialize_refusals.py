"""Values that no file can hold are refused before anything is written."""

import collections
import enum
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import Array

from fed.checkpoints import serialize
from support.saved import there_and_back

CYCLE: list[Any] = []


CYCLE.append(CYCLE)


class Pair(NamedTuple):
    """A subclass of tuple."""

    first: int
    second: int


class Colour(str, enum.Enum):  # noqa: UP042 (the older way to write it)
    """A subclass of str."""

    RED = "red"


class Words(list):  # type: ignore[type-arg]
    """A subclass of list."""


@pytest.mark.parametrize(
    "value",
    [
        object(), lambda: 0, 1j, frozenset({1}), range(3), Path("a"), int, np.array(["a"]), np.array([None]),
        np.array([b"a"]), np.datetime64("2020-01-01"), np.zeros(2, [("a", "f4")]), np.ones(2, np.longdouble),
        torch.Generator(), torch.nn.Linear(1, 1),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_cannot_be_kept_is_refused_and_nothing_is_written(value: Any, tmp_path: Path):
    for nested in (value, [1, {"a": (value,)}], {"k": torch.zeros(2), "v": value}):
        assert not serialize.is_packable(nested)
        with pytest.raises(TypeError, match=r"cannot be saved|can't convert np.ndarray"):
            serialize.save(nested, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", [np.zeros(0), torch.zeros(3, 4)[:0, 1], Array(np.zeros(0))], ids=["numpy", "view", "Array"]
)
def test_arrays_without_numbers_come_back_whatever_their_stride(value: Any, tmp_path: Path):
    found = there_and_back(value, tmp_path)
    assert tuple(found.shape) == (0,)


def test_a_conjugate_comes_back_as_its_values(tmp_path: Path):
    assert there_and_back(torch.tensor([1 + 2j], dtype=torch.complex64).conj(), tmp_path).tolist() == [1 - 2j]


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(1, np.complex128), torch.zeros(1, dtype=torch.complex128),
        np.zeros(2, np.dtype(np.float32).newbyteorder()), torch.eye(2).to_sparse(),
        torch.zeros(2, device="meta"), CYCLE, 10**5000,
    ],
    ids=["complex128", "tensor complex128", "byte order", "sparse", "meta", "cycle", "5000 digits"],
)  # fmt: skip
def test_what_a_strategy_may_hold_but_no_file_is_refused_before_a_round_is_trained(value: Any, tmp_path: Path):
    assert not serialize.is_packable({"a": value})
    with pytest.raises(TypeError):
        serialize.save({"a": value}, tmp_path / "saved")


@pytest.mark.parametrize(
    "value",
    [Pair(1, 2), Colour.RED, collections.defaultdict(int, {"a": 1}), collections.Counter("aab"), Words(["a"])],
    ids=lambda value: type(value).__name__,
)
def test_a_container_of_another_class_comes_back_as_such_or_is_refused(value: Any, tmp_path: Path):
    """A plain one would break the code that saved it: `pair.first`, `counts["new"] += 1`, `colour is RED`."""
    if serialize.is_packable(value):
        found = there_and_back(value, tmp_path)
        assert type(found) is type(value) and found == value


def test_an_array_that_nobody_may_write_to_is_kept_without_a_warning(tmp_path: Path, request: pytest.FixtureRequest):
    request.addfinalizer(functools.partial(torch.set_warn_always, torch.is_warn_always_enabled()))
    torch.set_warn_always(True)
    assert there_and_back(np.frombuffer(b"\0\0\x80?", np.float32), tmp_path).tolist() == [1]
