"""Markers that follow from what a test uses, so that nobody has to set them by hand."""

from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

RUNS = "runs"  # whole runs of the program
PROCESSES = "processes"  # forked processes that compute together
SERVERS = "servers"  # servers, browsers and other programs
# A test that reaches a function or class of one of these modules has the marker.
BY_MODULE = {
    "main": RUNS,
    "support.separate_runs": RUNS,
    "support.cut_off": RUNS,
    "fed.simulation": RUNS,
    "scripts.scale": RUNS,
    "scripts.scale_run": RUNS,
    "support.ranks": PROCESSES,
    "torch.multiprocessing": PROCESSES,
    "torch.multiprocessing.spawn": PROCESSES,
    "support.deployment": SERVERS,
    "selenium": SERVERS,
    "subprocess": SERVERS,
}
BY_FIXTURE = {"command_line": RUNS, "federate": RUNS, "browser": SERVERS}


def mark(item: pytest.Function) -> None:
    """Give a test the markers of all that it reaches, itself or through its fixtures and helpers."""
    fixtures = item._fixtureinfo.name2fixturedefs
    found = {BY_FIXTURE[name] for name in fixtures if name in BY_FIXTURE}
    starts = [item.function, *(definition.func for each in fixtures.values() for definition in each)]
    found |= {marker for start in starts for marker in _markers(start)}
    for marker in sorted(found):
        item.add_marker(marker)


_known: dict[Callable[..., Any], frozenset[str]] = {}


def _markers(start: Callable[..., Any]) -> frozenset[str]:
    if start not in _known:
        _known[start] = frozenset(BY_MODULE[name] for name in _modules(start) if name in BY_MODULE)
    return _known[start]


def _modules(start: Callable[..., Any]) -> set[str]:
    """Return the modules of all that a function names, and that the tests' own functions among it name in turn."""
    seen: set[int] = set()
    modules: set[str] = set()
    waiting: list[Any] = [start]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, ModuleType):
            modules |= {thing.__name__, thing.__name__.partition(".")[0]}
            continue
        module = getattr(thing, "__module__", None) or ""
        modules |= {module, module.partition(".")[0]}
        if not _is_ours(module):
            continue
        if isinstance(thing, type):
            waiting += [value for value in vars(thing).values() if isinstance(value, FunctionType)]
        elif isinstance(thing, FunctionType):
            waiting += [thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__]
    return modules


def _is_ours(module: str) -> bool:
    top = module.partition(".")[0]
    return top in {"support", "conftest"} or top.startswith("test_")


def _names(code: CodeType) -> Iterator[str]:
    """Yield the global names that a function uses, inside its inner functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
