"""Files of nested values: `load` returns exactly what was saved or refuses."""

import collections
import enum
import errno
import functools
import math
import os
import random
import resource
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fed.checkpoints import serialize
from fed.checkpoints.serialize import Damaged
from fed.errors import CannotWrite
from fed.files import sync
from fed.model.arrays import TensorArray, to_record, to_tensors


def there_and_back(nested: Any, folder: Path) -> Any:
    serialize.save(nested, folder / "saved")
    return serialize.load(folder / "saved")


def same(one: Any, other: Any) -> bool:
    """Return True if both are equal in type, in order and in every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))
    if isinstance(one, float):
        return repr(one) == repr(other)  # NaN is NaN here, and -0.0 is not 0.0
    return bool(one == other)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


# What comes back


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


# Flower's records


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


# Generators


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


# What no file can hold

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


# Damage


def small_file(folder: Path) -> tuple[Path, bytes]:
    serialize.save({"n": 1.5, "w": torch.arange(2.0)}, folder / "saved")
    return folder / "saved", (folder / "saved").read_bytes()


def test_every_flipped_bit_of_a_file_is_found(tmp_path: Path):
    file, content = small_file(tmp_path)
    assert len(content) < 300
    with file.open("r+b", buffering=0) as written:
        for place in range(8 * len(content)):
            changed = content[place // 8] ^ 1 << place % 8
            os.pwrite(written.fileno(), bytes([changed]), place // 8)
            with pytest.raises(Damaged, match=r"^saved "):
                serialize.load(file)
            os.pwrite(written.fileno(), content[place // 8 : place // 8 + 1], place // 8)
    assert serialize.load(file)["n"] == 1.5


def test_every_cut_and_every_addition_is_found(tmp_path: Path):
    file, content = small_file(tmp_path)
    for added in (b"\0", b" ", content):
        file.write_bytes(content + added)
        with pytest.raises(Damaged):
            serialize.load(file)
    for length in reversed(range(len(content))):
        os.truncate(file, length)
        with pytest.raises(Damaged):
            serialize.load(file)


def test_damage_anywhere_in_a_large_file_is_found(tmp_path: Path):
    file = tmp_path / "saved"
    serialize.save({f"w{k}": torch.full((50_000,), float(k)) for k in range(4)}, file)
    content = file.read_bytes()
    rng = random.Random(0)
    for place in (*rng.sample(range(len(content)), 40), len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        file.write_bytes(changed)
        with pytest.raises(Damaged):
            serialize.load(file)
        file.write_bytes(content[:place])
        with pytest.raises(Damaged):
            serialize.load(file)


def test_a_missing_or_foreign_file_is_damaged_too(tmp_path: Path):
    from safetensors.torch import save_file

    save_file({"0": torch.zeros(2)}, tmp_path / "foreign")
    (tmp_path / "folder").mkdir()
    for name in ("missing", "foreign", "folder"):
        with pytest.raises(Damaged, match=name):
            serialize.load(tmp_path / name)


# Writing


def test_a_new_file_takes_the_place_of_the_old_one(tmp_path: Path):
    assert there_and_back([1], tmp_path) == [1]
    assert there_and_back([2, 2], tmp_path) == [2, 2]
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CannotWrite),
        (OSError(errno.EIO, "Input/output error"), CannotWrite),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
    ],
    ids=["full", "broken", "interrupt", "memory"],
)
def test_what_stops_the_writing_leaves_the_old_file_and_nothing_else(
    error: BaseException, expected: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    serialize.save({"w": torch.ones(2)}, tmp_path / "saved")

    def half(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(serialize, "save_file", half)
    for name in ("saved", "other"):
        with pytest.raises(expected) as raised:
            serialize.save({"w": torch.zeros(2)}, tmp_path / name)
        if expected is CannotWrite:
            assert str(raised.value) == f"cannot write {tmp_path / name}: {error.args[1]}"  # type: ignore[index]
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]
    assert serialize.load(tmp_path / "saved")["w"].tolist() == [1, 1]


def test_the_file_is_under_another_name_until_it_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[list[str]] = []
    write = serialize.save_file

    def watched(tensors: Any, path: Path, metadata: Any) -> None:
        write(tensors, path, metadata)
        seen.append([found.name for found in tmp_path.iterdir()])

    monkeypatch.setattr(serialize, "save_file", watched)
    serialize.save(1, tmp_path / "saved")
    assert seen == [["saved.partial"]]


def test_a_folder_that_is_not_there_cannot_be_written_to(tmp_path: Path):
    with pytest.raises(CannotWrite, match=r"cannot write .*saved: No such file or directory$"):
        serialize.save(1, tmp_path / "none" / "saved")


def test_a_disk_that_refuses_to_remove_too_is_told_as_one_that_refuses(tmp_path: Path):
    """A read-only disk refuses likewise; here the folder is a file."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWrite, match=r"cannot write .*saved: "):
        serialize.save(1, tmp_path / "file" / "saved")


def test_what_the_library_itself_says_of_a_disk_that_takes_no_more_is_understood(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(CannotWrite, match=r"saved: File too large$"):
            serialize.save(torch.zeros(10_000), tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_sync_takes_files_and_folders(tmp_path: Path):
    serialize.save(1, tmp_path / "saved")
    sync(tmp_path / "saved")
    sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "none")


# Any nested value


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
