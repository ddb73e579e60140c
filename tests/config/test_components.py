"""From a dotted path and values to a component, and the refusals on the way."""

from typing import Any

import pytest
import torch
from flwr.serverapp.strategy import FedAvg

from fed.config.components import bind, check_call, create, imported
from losses.logps import Logps

HERE = __name__


class Plain:
    """Takes typed values."""

    def __init__(self, size: int, rate: float = 0.5, name: str | None = None, flag: bool = False) -> None:
        self.values = (size, rate, name, flag)


class Passing(Plain):
    """Hands on what it does not know."""

    def __init__(self, extra: int = 0, **others: Any) -> None:
        super().__init__(**others)
        self.extra = extra


class MyStrategy(FedAvg):
    """A user's, with FedAvg's parameters."""


class Holder:
    """Wraps another component."""

    def __init__(self, inner: Plain) -> None:
        self.inner = inner


class Picky:
    """Refuses its value."""

    def __init__(self, size: int) -> None:
        raise ValueError(f"size={size} is not to my taste")


def hinge(policy: Logps, reference: Logps | None, *, delta: float) -> torch.Tensor:
    assert policy.rejected is not None
    return (delta - (policy.chosen - policy.rejected)).clamp(min=0)


def test_values_reach_the_target() -> None:
    assert create("g", {"_target_": f"{HERE}.Plain", "size": 3, "rate": 1}, ()).values == (3, 1, None, False)


def test_nested_nodes_are_made_first() -> None:
    made = create("g", {"_target_": f"{HERE}.Holder", "inner": {"_target_": f"{HERE}.Plain", "size": 1}}, ())
    assert isinstance(made.inner, Plain)
    with pytest.raises(ValueError, match=r"g\.inner\.size=x is of the wrong type"):
        create("g", {"_target_": f"{HERE}.Holder", "inner": {"_target_": f"{HERE}.Plain", "size": "x"}}, ())


def test_a_class_takes_what_it_passes_on_to_its_bases() -> None:
    made = create("g", {"_target_": f"{HERE}.Passing", "size": 3, "extra": 2}, ())
    assert (made.values[0], made.extra) == (3, 2)
    with pytest.raises(ValueError, match="takes no foo; it takes extra, flag, name, rate, size"):
        create("g", {"_target_": f"{HERE}.Passing", "size": 3, "foo": 2}, ())


def test_a_typed_target_drops_values_of_the_file_it_replaces_but_no_typed_one() -> None:
    node = {"_target_": f"{HERE}.MyStrategy", "temp": 0.1, "fraction_train": 0.5}
    assert create("strategy", node, {"strategy._target_"}).fraction_train == 0.5
    with pytest.raises(ValueError, match=r"strategy\.temp: .*MyStrategy takes no temp"):
        create("strategy", node, {"strategy._target_", "strategy.temp"})
    with pytest.raises(ValueError, match=r"strategy\.temp"):
        create("strategy", node, ())


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("size", "abc", "g.size=abc is of the wrong type; .*Plain expects a whole number"),
        ("size", 1.5, "expects a whole number"),
        ("size", True, "expects a whole number"),
        ("rate", "x", "expects a number"),
        ("name", 3, "expects text or null"),
        ("flag", 7, "expects true or false"),
    ],
)
def test_values_of_the_wrong_type_are_refused(key: str, value: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        create("g", {"_target_": f"{HERE}.Plain", "size": 1, key: value}, ())


def test_a_target_that_refuses_or_lacks_a_value_is_named() -> None:
    with pytest.raises(ValueError, match=r"g: .*Picky refuses its values: size=1 is not to my taste"):
        create("g", {"_target_": f"{HERE}.Picky", "size": 1}, ())
    with pytest.raises(ValueError, match=r"Plain refuses its values: .*'size'"):
        create("g", {"_target_": f"{HERE}.Plain"}, ())


def test_a_function_is_bound_to_its_values() -> None:
    loss = bind("loss", {"_target_": f"{HERE}.hinge", "beta": 0.1, "delta": 2}, {"loss._target_", "loss.delta"})
    logps = Logps(torch.tensor([-1.0]), torch.tensor([-2.0]))
    assert loss(logps, None).tolist() == [1.0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "missing a required .*'delta'"),
        ({"delta": "x"}, r"loss\.delta=x is of the wrong type"),
        ({"delta": 1, "policy": 2}, r"loss\.policy: .* takes no policy; it takes delta"),
    ],
)
def test_a_function_that_could_not_be_called_is_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bind("loss", {"_target_": f"{HERE}.hinge", **values}, ())


@pytest.mark.parametrize("path", ["nope", "no_such_module.Name", "json.nope", "json.", ".x"])
def test_a_path_without_anything_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be imported: .*expected module\.Name"):
        imported("strategy._target_", path)


def test_a_path_to_no_callable_is_refused() -> None:
    with pytest.raises(ValueError, match="not a class or function but of type str"):
        imported("strategy._target_", "os.sep")


def test_calls_are_checked_by_number_of_values() -> None:
    check_call("mod", lambda message, context, call_next: None, 3, {})
    check_call("mod", print, 3, {})
    with pytest.raises(ValueError, match="mod cannot be called with 3 values"):
        check_call("mod", lambda message: None, 3, {})
