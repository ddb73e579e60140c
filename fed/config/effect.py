"""Refuses keys that have no effect with the other settings."""

from collections.abc import Iterable, Mapping
from typing import Any

from fed.config.meaning import value_of
from fed.config.schema import Config, every_key

AGGREGATION = ("strategy", "privacy")  # groups that only a federation has


def check_effect(config: Config, given: frozenset[str]) -> None:
    """Refuse a typed key that another setting leaves without effect.

    Raises:
        ValueError: Naming the key and that setting.
    """
    if "engine" in given and config.engine == "flower":
        raise ValueError("engine=flower is what `flwr run` starts; use engine=local or engine=ray here")
    if "local_steps" in given and "local_epochs" in given and config.local_steps is not None:
        raise ValueError("local_steps and local_epochs are both given; choose one")
    for name in sorted(given):
        if config.mode != "federated" and name.split(".")[0] in AGGREGATION:
            raise ValueError(f"{name} has no effect with mode={config.mode}, which aggregates nothing; leave it out")
        known = every_key().get(name)
        for idle in known.idle if known else ():
            if idle.applies(value_of(config, idle.key)):
                raise ValueError(f"{name} has no effect with {idle.reason}; leave it out")


def check_read(given: Iterable[str], unresolved: Mapping[str, object], choices: Mapping[str, str | None]) -> None:
    """Refuse a typed key that the chosen file of its group does not read as "${key}".

    Raises:
        ValueError: Naming the key and the file.
    """
    for name, group, read in _readers(given):
        if not reads(unresolved[group], read):
            raise ValueError(
                f"{name} has no effect with {group}={choices.get(group)}, which reads no {read}; leave it out"
            )


def reads(node: object, name: str) -> bool:
    """Return True if a group's file, or a part of it, reads this key of the command line."""
    return f"${{{name}}}" in str(node)


def passed_on(given: Iterable[str], unresolved: Mapping[str, Any]) -> frozenset[str]:
    """Return the parameters of groups that typed keys fill: `temp` fills `strategy.temp`."""
    return frozenset(
        f"{group}.{parameter}"
        for _, group, read in _readers(given)
        for parameter, value in unresolved[group].items()
        if reads(value, read) and not isinstance(value, Mapping)
    )


def _readers(given: Iterable[str]) -> list[tuple[str, str, str]]:
    """Return (key, group, name that the group's file must read) of each typed key that only a group's file reads."""
    known = {name: every_key()[name] for name in sorted(given) if name in every_key()}
    return [(name, *key.read_by) for name, key in known.items() if key.read_by is not None]
