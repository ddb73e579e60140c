"""The description of a key: its meaning, its range, and the settings with which it has no effect.

A key is written once, in the schema, as `name: type = key(default, "What it means.", ...)`. The checks, the refusals,
the settings of nodes, the rules of `resume=` and docs/settings.md all read it there.
"""

import math
import types
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, cast

T = TypeVar("T")

# "result": it decides what the run computes. "repetition": it tells repetitions of one run apart.
# "place": it says where files lie. "upkeep": a run may have it otherwise and is still the same run.
Role = Literal["result", "repetition", "place", "upkeep"]
# Where clients are SuperNodes, who decides it: the run; the run unless a node says otherwise; the node's machine alone.
Decider = Literal["run", "node", "machine"]
# With `resume=`: "fixed" as the run began; "free" to change; "finds" the run that is to go on.
OnResume = Literal["fixed", "free", "finds"]

# The words of messages and docs for the types of values that YAML knows, besides lists.
TYPE_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    types.NoneType: "null",
}


@dataclass(frozen=True)
class Limits:
    """The numbers that a key accepts. Infinity and "not a number" are always refused."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def hold(self, value: float) -> bool:
        """Return True if the value lies within the limits."""
        return self.at_least <= value <= self.at_most and self.above < value < self.below

    @property
    def text(self) -> str:
        """The limits in words: "at least 0 and less than 1"."""
        named = (
            ("at least", self.at_least),
            ("more than", self.above),
            ("at most", self.at_most),
            ("less than", self.below),
        )
        return " and ".join(f"{words} {number:g}" for words, number in named if math.isfinite(number))


@dataclass(frozen=True)
class Idle:
    """A value of another key with which a key has no effect."""

    key: str
    applies: Callable[[object], bool]  # asked about the other key's value
    reason: str  # continues "has no effect with ..."


@dataclass(frozen=True)
class Scope:
    """The reach of a key beyond the run that it was typed for."""

    role: Role = "result"
    decider: Decider = "run"
    resume: OnResume = "fixed"
    federated_only: bool = False  # a comparison passes it to federated methods only


RUN = Scope()


@dataclass(frozen=True)
class Key:
    """Everything the schema says of a key besides its type and its default."""

    doc: str  # whole sentences, in Markdown; units; the meaning of null
    limits: Limits | None = None
    choices: tuple[str, ...] = ()
    idle: tuple[Idle, ...] = ()
    read_by: tuple[str, str] | None = None  # a group whose chosen file must read this key, as "${key}"
    scope: Scope = RUN


def key(
    default: T,
    doc: str,
    limits: Limits | None = None,
    *,
    choices: Sequence[str] = (),
    idle: Sequence[Idle] = (),
    read_by: tuple[str, str] | None = None,
    scope: Scope = RUN,
) -> T:
    """Return the dataclass field of a key; the arguments are those of `Key`."""
    metadata = {"key": Key(doc, limits, tuple(choices), tuple(idle), read_by, scope)}
    if isinstance(default, list):
        return cast(T, field(default_factory=lambda: copy(default), metadata=metadata))
    return field(default=default, metadata=metadata)


def at(other: str, value: object, why: str = "") -> Idle:
    """Return the `Idle` of a key that has no effect while another one has this value."""
    return Idle(other, lambda found: found == value, f"{other}={shown(value)}" + (f", {why}" if why else ""))


def unless(other: str, value: object, reason: str) -> Idle:
    """Return the `Idle` of a key that has an effect only while another one has this value."""
    return Idle(other, lambda found: found != value, reason)


def shown(value: object) -> str:
    """Return a value as it is typed on the command line."""
    if isinstance(value, list):
        return f"[{','.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{name}:{shown(item)}" for name, item in value.items()) + "}"
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else str(value)


def value_of(settings: object, dotted: str) -> object:
    """Return the value of a dotted key; settings are dataclasses, groups with `_target_` are mappings."""
    found: Any = settings
    for name in dotted.split("."):
        found = found[name] if isinstance(found, Mapping) else getattr(found, name)
    return found
