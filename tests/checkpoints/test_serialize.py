"""Files of nested values: `load` returns exactly what was saved."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fed.checkpoints import serialize
from fed.model.arrays import TensorArray, to_record, to_tensors
from support.saved import same, there_and_back


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -3, 2**200, 0.1, -0.0, math.inf, -math.inf, math.nan, 5e-324,
        "", "text", 'a "quoted" \\ line\nand é, 你, \x00, \ud800', b"", b"\x00\xff",
        [], (), set(), {}, [[]], (1, (2.0, None)), {1, 2}, {("a", 1): {b"k": [()]}},
        {1: "int", "1": "text", None: "none", 2.5: "float", (1, 2): "tuple"},
        {"dict": 1}, {"tensor": 0}, {"numpy": [0, "float32"]},  # keys that the file's own notation has too
    ],
)  # fmt: skip
def test_plain_values_come_back_with_their_types(value: Any, tmp_path: Path):
    assert same(there_and_back(value, tmp_path), value)


def test_the_order_of_a_dictionary_stays(tmp_path: Path):
    assert list(there_and_back({"z": 1, "a": 2, 10: 3, 9: 4}, tmp_path)) == ["z", "a", 10, 9]


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.1), np.float64(0.1), np.float16(0.1), np.int8(-1), np.int64(2**62), np.uint64(2**63),
        np.bool_(True), np.float32("nan"), np.complex64(1 + 2j),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_numpys_numbers_keep_their_types(value: np.generic, tmp_path: Path):
    """`np.float64` is a `float` to Python; as one it would compute in other bits beside a `np.float32`."""
    found = there_and_back({"a": value}, tmp_path)["a"]
    assert type(found) is type(value) and found.tobytes() == value.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array([[1.5, -0.0], [np.nan, np.inf]]), np.array([True, False]), np.array(4.5), np.array(True),
        np.zeros((0, 3), np.float32), np.arange(3, dtype=np.uint16), np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4)[::-1], np.arange(10)[2:8:3], np.broadcast_to(np.float32(2), (2, 2)),
    ],
)  # fmt: skip
def test_numpy_arrays_keep_values_shape_and_dtype(array: np.ndarray, tmp_path: Path):
    assert same(there_and_back([array], tmp_path)[0], array)


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool],
    ids=str,
)
def test_tensors_of_every_dtype_and_shape(dtype: torch.dtype, tmp_path: Path):
    shapes: list[tuple[int, ...]] = [(), (0,), (2, 0), (3,), (2, 2, 2)]
    nested = [torch.arange(math.prod(shape)).reshape(shape).to(dtype) for shape in shapes]
    assert same(there_and_back(nested, tmp_path), nested)


def test_nan_keeps_its_bits(tmp_path: Path):
    """0x7FC00001 and 0xFFC00000 are both NaN."""
    odd = torch.tensor([0x7FC00001, -0x400000], dtype=torch.int32).view(torch.float32)
    assert there_and_back(odd, tmp_path).view(torch.int32).tolist() == [0x7FC00001, -0x400000]


def test_a_view_comes_back_without_the_rest_of_its_memory(tmp_path: Path):
    whole = torch.arange(100_000.0).reshape(1000, 100)
    nested = [whole[3, 2:5], whole[:2, :2].T, whole[5:6, :3].expand(2, 3)]
    found = there_and_back(nested, tmp_path)
    assert [tensor.tolist() for tensor in found] == [[302, 303, 304], [[0, 100], [1, 101]], [[500, 501, 502]] * 2]
    assert (tmp_path / "saved").stat().st_size < 2000


def test_what_stands_in_several_places_is_written_once_and_stays_one(tmp_path: Path):
    tensor = torch.zeros(1000)
    array = TensorArray(torch.ones(2))
    found = there_and_back({"a": tensor, "b": [tensor], "c": array, "d": array}, tmp_path)
    assert found["a"] is found["b"][0] and found["c"].tensor is found["d"].tensor
    assert (tmp_path / "saved").stat().st_size < 2 * 4000


def test_tensors_that_share_memory_in_other_ways_all_come_back(tmp_path: Path):
    base = torch.arange(4.0)
    found = there_and_back(
        [base, base.detach(), base[:2], base[2:], base.view(2, 2), torch.zeros(0), torch.zeros(0)], tmp_path
    )
    assert [tensor.tolist() for tensor in found] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [0, 1],
        [2, 3],
        [[0, 1], [2, 3]],
        [],
        [],
    ]


def test_a_parameter_comes_back_as_its_values(tmp_path: Path):
    found = there_and_back(torch.nn.Parameter(torch.ones(2)), tmp_path)
    assert type(found) is torch.Tensor and not found.requires_grad and found.tolist() == [1, 1]


def test_what_is_saved_is_left_as_it_is(tmp_path: Path):
    state = {"a": torch.arange(6.0).reshape(2, 3).T, "g": np.random.default_rng(1)}
    before = state["a"].data_ptr()
    there_and_back(state, tmp_path)
    assert state["a"].data_ptr() == before and state["a"].stride() == (1, 3)
    assert state["g"].random() == np.random.default_rng(1).random()


def test_arrays_come_back_in_order_whatever_holds_them(tmp_path: Path):
    record = to_record({"z": torch.tensor([1.0, 2.0]), "b": torch.ones(2, dtype=torch.bfloat16)})
    record["a"] = Array(np.array([[0.1]]))
    record["half"] = Array(np.array(2.5, np.float16))
    found = there_and_back(record, tmp_path)
    assert type(found) is ArrayRecord and list(found) == ["z", "b", "a", "half"]
    assert all(isinstance(array, TensorArray) for array in found.values())
    assert found["b"].tensor.dtype == torch.bfloat16
    assert same(found["a"].numpy(), np.array([[0.1]])) and same(found["half"].numpy(), np.array(2.5, np.float16))


def test_records_keep_kind_keys_and_values(tmp_path: Path):
    content = RecordDict(
        {
            "m": MetricRecord({"n": 3, "x": 0.1, "many": [1.5, float("nan")], "none": []}),
            "c": ConfigRecord(
                {"s": "é", "b": b"\x00\xff", "flag": True, "list": ["a", "b"], "bytes": [b"\x01"], "f": 1.0}
            ),
            "a": to_record({"w": torch.zeros(2)}),
            "nothing": ArrayRecord(),
        }
    )
    found = there_and_back({"x": content}, tmp_path)["x"]
    assert type(found) is RecordDict and list(found) == ["m", "c", "a", "nothing"]
    assert {key: type(record) for key, record in found.items()} == {
        "m": MetricRecord, "c": ConfigRecord, "a": ArrayRecord, "nothing": ArrayRecord,
    }  # fmt: skip
    assert same(dict(found["m"]), {"n": 3, "x": 0.1, "many": [1.5, math.nan], "none": []})
    assert same(dict(found["c"]), dict(content["c"]))
    assert found["a"]["w"].numpy().tolist() == [0, 0] and len(found["nothing"]) == 0


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64])
def test_a_numpy_generator_continues_with_the_same_draws(bits: Any, tmp_path: Path):
    drawn, other = np.random.Generator(bits(7)), np.random.Generator(bits(7))
    drawn.integers(10, size=3, dtype=np.uint32)  # keeps half of a 64-bit draw for the next one
    other.integers(10, size=3, dtype=np.uint32)
    found = there_and_back([drawn], tmp_path)[0]
    assert (
        found.integers(2**31, size=5, dtype=np.uint32).tolist()
        == other.integers(2**31, size=5, dtype=np.uint32).tolist()
    )
    assert found.normal(size=100).tolist() == other.normal(size=100).tolist()


def test_pythons_generator_continues_with_the_same_draws(tmp_path: Path):
    drawn, other = random.Random(7), random.Random(7)
    drawn.gauss(), other.gauss()  # the second of a pair waits inside
    found = there_and_back({"rng": drawn}, tmp_path)["rng"]
    assert [found.gauss(), found.random()] == [other.gauss(), other.random()]


def any_array() -> st.SearchStrategy[Any]:
    shapes = st.lists(st.integers(0, 3), max_size=3).map(tuple)
    dtypes = st.sampled_from([np.float32, np.float64, np.int32, np.uint8, np.bool_, np.float16])
    arrays = st.builds(lambda shape, dtype, seed: filled(shape, dtype, seed), shapes, dtypes, st.integers(0, 9))
    return arrays | arrays.map(torch.from_numpy) | arrays.map(lambda array: array.astype(array.dtype)[()])


def filled(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    """Draw arrays of arbitrary bits, booleans apart."""
    rng = np.random.default_rng(seed)
    if dtype is np.bool_:
        return np.asarray(rng.integers(0, 2, shape), dtype=np.bool_)
    size = math.prod(shape) * np.dtype(dtype).itemsize
    return np.frombuffer(bytearray(rng.bytes(size)), dtype=dtype).reshape(shape)


def any_key() -> st.SearchStrategy[Any]:
    return (
        st.integers() | st.text(max_size=5) | st.booleans() | st.none() | st.tuples(st.integers(), st.text(max_size=2))
    )


def any_nested() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | any_array()
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(any_key(), inner, max_size=4)
            | st.sets(st.integers() | st.text(max_size=3), max_size=3)
        ),
        max_leaves=12,
    )


@settings(max_examples=150, deadline=None)
@given(nested=any_nested())
def test_any_nested_value_comes_back(nested: Any, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.getbasetemp()
    assert same(there_and_back(nested, folder), nested)


def test_a_packed_part_is_as_the_part_itself(tmp_path):
    part = {"client": MetricRecord({"n": 3, "x": 0.5}), 7: (1, None)}
    serialize.save({"parts": [serialize.packed(part)]}, tmp_path / "saved")
    assert serialize.load(tmp_path / "saved") == {"parts": [part]}


def test_a_mapped_value_is_the_saved_one_and_outlives_its_file(tmp_path):
    nested = {"record": to_record({"v": torch.arange(4.0)}), "tensor": torch.ones(2), "n": 1}
    serialize.save(nested, tmp_path / "saved")
    found = serialize.mapped(tmp_path / "saved")
    (tmp_path / "saved").unlink()
    assert found["n"] == 1 and found["tensor"].tolist() == [1, 1]
    assert to_tensors(found["record"])["v"].tolist() == [0, 1, 2, 3]
