"""Settings from the plain values of a message or a file of others, which may hold anything."""

import re
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from fed.config.schema import Config


def from_plain(values: Mapping[str, Any]) -> Config:
    """Return the settings that these values are, by key; what is missing has its default.

    Every `${` is text. As an interpolation it could read the environment of whoever loads it: `${oc.env:HF_TOKEN}`.

    Raises:
        OmegaConfBaseException: If a key is unknown, or a value of the wrong type.
    """
    config: Config = OmegaConf.to_object(as_nodes(values))  # type: ignore[assignment]
    return config


def as_nodes(values: Mapping[str, Any]) -> Any:
    """Return the settings as nodes of OmegaConf, which can be updated; raises as `from_plain` does."""
    return OmegaConf.merge(OmegaConf.structured(Config), _escaped(values))


def _escaped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):  # backslashes before `${` escape one another
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + r"\${", value)
    return value
