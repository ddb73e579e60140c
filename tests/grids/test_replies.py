"""Replies that no aggregate can use are found, whatever is wrong with them."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fed.distributed.ranks import arrange
from fed.errors import Failed
from fed.grids.local import LocalGrid
from fed.grids.replies import check_reply
from fed.model.arrays import to_record
from support.ranks import in_ranks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def grid() -> LocalGrid:
    """`Message()` needs the identity that a grid sets."""
    return LocalGrid(lambda message, context: message, [])


def reply(content: dict[str, Any]) -> Message:
    return Message(RecordDict(content), reply_to=Message(RecordDict(), 0, "train"))


SENT = {"arrays": {"w": torch.tensor([1.0, -2.0])}}


def problem(sent: dict[str, Any], content: dict[str, Any]) -> str | None:
    try:
        check_reply(sent, reply(content))
    except Failed as failed:
        return str(failed)
    return None


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({"w": torch.ones(2)}, None),
        ({"w": torch.ones(2, dtype=torch.float64)}, None),  # as some of Flower's mods leave them
        ({"w": torch.tensor([3.4e38, -3.4e38])}, None),
        ({"w": torch.ones(2), "v": torch.ones(1)}, "its arrays have other names: v is on one side only"),
        ({"v": torch.ones(2)}, "its arrays have other names: v is on one side only"),
        ({}, "its arrays have other names: w is on one side only"),
        ({"w": torch.ones(2, 1)}, "its w has shape (2, 1), expected (2,)"),
        ({"w": torch.tensor(1.0)}, "its w has shape (), expected (2,)"),
        ({"w": torch.tensor([-torch.inf, 1.0])}, "its w is not finite"),
        ({"w": torch.tensor([torch.nan, torch.inf])}, "its w is not finite"),
        ({"w": torch.tensor([1.0, torch.nan], dtype=torch.float64)}, "its w is not finite"),
        ({"w": torch.tensor([1.0, torch.nan], dtype=torch.bfloat16)}, "its w is not finite"),
    ],
)
def test_arrays_must_be_those_that_were_sent_and_finite(arrays: dict[str, torch.Tensor], expected: str | None) -> None:
    assert problem(SENT, {"arrays": to_record(arrays)}) == expected


def test_one_bad_number_anywhere_is_found() -> None:
    sent = {"arrays": {"w": torch.zeros(100, 100)}}
    for place in ((0, 0), (57, 31), (99, 99)):
        for value in (torch.nan, torch.inf, -torch.inf):
            tensor = torch.zeros(100, 100)
            tensor[place] = value
            assert problem(sent, {"arrays": to_record({"w": tensor})}) == "its w is not finite"


def test_other_kinds_of_arrays_are_looked_at_too() -> None:
    tensors = {
        "none": torch.zeros(0, 3),
        "number": torch.tensor(2.0),
        "int": torch.tensor([1, 2]),
        "flag": torch.tensor([True]),
    }
    assert problem({"arrays": tensors}, {"arrays": to_record(tensors)}) is None
    assert problem({"arrays": tensors}, {"arrays": to_record({**tensors, "number": torch.tensor(torch.nan)})})


def test_the_record_of_another_name_is_missing_and_one_more_does_no_harm() -> None:
    arrays = to_record({"w": torch.ones(2)})
    assert problem(SENT, {"weights": arrays}) == "its reply has no arrays under arrays"
    assert problem(SENT, {"arrays": arrays, "more": to_record({"c": torch.tensor([torch.nan])})}) is None
    assert problem({"arrays": {}}, {}) is None  # nothing was sent: nothing is expected


@pytest.mark.parametrize(
    ("value", "found"),
    [
        *[(0.5, None), (3, None), ([0.1, 2.0], None), ([], None)],
        *[(math.nan, "nan"), (-math.inf, "-inf"), ([1.0, math.nan], "[1.0, nan]")],
    ],
)
def test_metrics_must_be_finite(value: Any, found: str | None) -> None:
    content = {"arrays": to_record({"w": torch.ones(2)}), "c": ConfigRecord({"x": math.nan})}
    expected = None if found is None else f"its loss is {found}"
    assert problem(SENT, {**content, "metrics": MetricRecord({"n": 1, "loss": value})}) == expected


def test_a_reply_with_nothing_in_it_lacks_the_arrays() -> None:
    assert problem(SENT, {}) == "its reply has no arrays under arrays"
    assert problem(SENT, {"arrays": ArrayRecord()}) == "its arrays have other names: w is on one side only"


# Several processes


def parts(values: list[list[float]], folder: Path | None = None) -> str | None:
    own = arrange(1, CPU).own
    content = {"arrays": to_record({"w": torch.tensor(values[own.index])})}
    try:
        check_reply(SENT, reply(content), own)
    except Failed as failed:
        return str(failed)
    return None


@pytest.mark.parametrize("bad", [0, 1])
def test_a_part_that_is_not_finite_fails_the_client_in_all_its_processes(bad: int) -> None:
    values = [[1.0, 2.0], [3.0, 4.0]]
    assert in_ranks(2, parts, values) == [None, None]
    values[bad][1] = math.nan
    assert in_ranks(2, parts, values) == ["its w is not finite"] * 2


def both_bad() -> str | None:
    return parts([[1.0, 2.0, 3.0], [math.nan, 0.0]])


def test_of_two_reasons_all_processes_tell_the_first_ones() -> None:
    assert in_ranks(2, both_bad) == ["its w has shape (3,), expected (2,)"] * 2
