"""Losses, strategies and partitioners made from YAML: a dotted path and its keyword arguments."""

import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fed.config.meaning import TYPE_WORDS


def create(group: str, node: Mapping[str, Any], given: Collection[str]) -> Any:
    """Call `node["_target_"]` with the node's other values and return its result; nested nodes are made first.

    Args:
        group: Name of the configuration group, for messages: "strategy", "partition".
        node: Resolved group node.
        given: Keys typed on the command line.

    Raises:
        ValueError: If the path cannot be imported, does not take a value, or refuses one.
    """
    target, values = _target_and_values(group, node, given)
    nested = {
        key: create(f"{group}.{key}", value, given) if isinstance(value, Mapping) and "_target_" in value else value
        for key, value in values.items()
    }
    try:
        return target(**nested)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{group}: {node['_target_']} refuses its values: {error}") from error


def bind(group: str, node: Mapping[str, Any], given: Collection[str]) -> functools.partial[Any]:
    """Return the function `node["_target_"]` with the node's other values bound; two arguments are left: log-probs.

    Raises:
        ValueError: If the path cannot be imported, does not take a value, or lacks one.
    """
    target, values = _target_and_values(group, node, given, supplied=2)
    check_call(f"{group}._target_={node['_target_']}", target, 2, values)
    return functools.partial(target, **values)


def imported(key: str, path: str) -> Any:
    """Import the callable at a dotted path.

    Raises:
        ValueError: If there is none.
    """
    check_path(key, path)
    module, _, name = path.rpartition(".")
    try:
        if not module:
            raise ImportError("the path has no module")
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{key}={path} cannot be imported: {error}; expected module.Name, with the module in this folder or "
            "installed"
        ) from error
    if not callable(found):
        raise ValueError(
            f"{key}={path} is not a class or function but of type {type(found).__name__}; expected module.Name"
        )
    return found


def check_path(key: str, path: object) -> None:
    """Refuse what YAML gives in place of a dotted path: whatever was typed.

    Raises:
        ValueError: Naming the key.
    """
    if not isinstance(path, str):
        raise ValueError(f"{key}={path} is not a dotted path; expected module.Name")


def check_call(name: str, function: Callable[..., Any], supplied: int, values: Mapping[str, Any]) -> None:
    """Refuse a function that cannot be called with so many positional values and these keyword arguments.

    Raises:
        ValueError: If its signature does not take them.
    """
    try:
        signature = inspect.signature(function)
    except ValueError:  # some builtins have none
        return
    try:
        signature.bind(*[None] * supplied, **values)
    except TypeError as error:
        raise ValueError(f"{name} cannot be called with {supplied} values and {dict(values)}: {error}") from error


def _target_and_values(
    group: str, node: Mapping[str, Any], given: Collection[str], supplied: int = 0
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return the callable and the values meant for it; values of the wrong type are refused.

    A target typed on the command line inherits the values of the file it replaces, and a typed file those of a preset.
    A value that the target does not take is dropped, or refused if it was itself typed.

    Args:
        group: Name of the configuration group.
        node: Resolved group node.
        given: Keys typed on the command line.
        supplied: Number of values that come by position at each call.
    """
    target = imported(f"{group}._target_", node["_target_"])
    values = {key: value for key, value in node.items() if key != "_target_"}
    try:
        taken = _parameters(target, supplied)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{group}._target_={node['_target_']} is not a Python class or function: {error}") from error
    if taken is None:
        return target, values
    for key in sorted(set(values) - set(taken)):
        if f"{group}.{key}" in given or not {group, f"{group}._target_"} & set(given):
            listed = ", ".join(sorted(taken)) or "nothing"
            raise ValueError(f"{group}.{key}: {node['_target_']} takes no {key}; it takes {listed}")
        del values[key]
    for key, value in values.items():
        if not _fits(value, taken[key]):
            expected = " or ".join(TYPE_WORDS[kind] for kind in _kinds(taken[key]))
            raise ValueError(f"{group}.{key}={value} is of the wrong type; {node['_target_']} expects {expected}")
    return target, values


def _parameters(target: Callable[..., Any], supplied: int) -> dict[str, Any] | None:
    """Return the keyword arguments with their types, or None if any are taken.

    A class that passes **kwargs on also takes what its bases take.
    """
    if isinstance(target, type):
        functions = [vars(base)["__init__"] for base in target.__mro__[:-1] if "__init__" in vars(base)]
        supplied = 1  # self
    else:
        functions = [target]
    found: dict[str, Any] = {}
    for function in functions:
        parameters = list(inspect.signature(function).parameters.values())
        hints = _hints(function)
        for parameter in parameters[supplied:]:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, hints.get(parameter.name, Any))
        if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
            return found
    return found if isinstance(target, type) else None


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except (NameError, TypeError, AttributeError):  # names that only a type checker imports
        return {}


def _kinds(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Return True if YAML's value has this type, or if the type is one that YAML does not know."""
    kinds = _kinds(hint)
    if any(kind not in TYPE_WORDS for kind in kinds):
        return True
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
        return True
    return type(value) in kinds
