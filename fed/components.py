"""Losses, strategies and partitioners from YAML: a dotted path and its keyword arguments, no registry."""

import functools
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any


def create(group: str, node: Mapping[str, Any], given: Collection[str]) -> Any:
    """What `node["_target_"]` returns when called with the node's other values; nested nodes first.

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


def bind(group: str, node: Mapping[str, Any], given: Collection[str]) -> Callable[..., Any]:
    """The function `node["_target_"]` with the node's other values as keyword arguments.

    Raises:
        ValueError: If the path cannot be imported or does not take a value.
    """
    target, values = _target_and_values(group, node, given)
    return functools.partial(target, **values)


def imported(key: str, path: str) -> Any:
    """The object at a dotted path.

    Raises:
        ValueError: If there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{key}={path} cannot be imported: {error}; expected module.Name, with the module in this folder or "
            "installed"
        ) from error


def _target_and_values(
    group: str, node: Mapping[str, Any], given: Collection[str]
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The callable and the values meant for it.

    A target typed on the command line inherits the values of the file it replaces: those it does not take are dropped,
    but a value that was itself typed is never dropped in silence.
    """
    target = imported(f"{group}._target_", node["_target_"])
    values = {key: value for key, value in node.items() if key != "_target_"}
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{group}._target_={node['_target_']} is not a Python class or function: {error}") from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return target, values
    taken = {parameter.name for parameter in parameters}
    for key in set(values) - taken:
        if f"{group}.{key}" in given or f"{group}._target_" not in given:
            raise ValueError(f"{group}.{key}: {node['_target_']} takes no {key}; it takes {', '.join(sorted(taken))}")
        del values[key]
    return target, values
