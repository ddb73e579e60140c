"""The schema of the command line: every key with its type, its default and its meaning.

Keys stand in fed/config/sections/ and, those of groups, in fed/config/groups.py. Defaults stand there and in the YAML
files of config/, and nowhere else. They are those of the published code, except where docs/decisions/ says why
not; `model=demo` brings settings of its own.
"""

import functools
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from fed.config.conditions import OWN_DATA
from fed.config.groups import ColumnSettings, LoraSettings, ModelSettings, PrivacySettings
from fed.config.meaning import Key
from fed.config.online import OnlineSettings
from fed.config.sections.computing import ComputingKeys
from fed.config.sections.data import DataKeys
from fed.config.sections.federation import FederationKeys
from fed.config.sections.run import RunKeys
from fed.config.sections.training import TrainingKeys

OPEN_GROUPS = ("loss", "partition", "strategy")  # what `_target_` names takes keys that the schema does not know
GROUPS = ("model", "privacy", *OPEN_GROUPS)
PRESETS = (
    "experiment"  # chosen from a folder of config/ like a group, but its files set other keys and no key of their own
)
CONFIG_DIR = Path(__file__).parents[2] / "config"


@dataclass
class GroupKeys:
    """Groups of keys, which the files of config/<group>/ set."""

    model: ModelSettings = field(default_factory=ModelSettings)
    loss: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    columns: ColumnSettings = field(default_factory=ColumnSettings)
    online: OnlineSettings = field(default_factory=OnlineSettings)


@dataclass
class Config(TrainingKeys, FederationKeys, DataKeys, ComputingKeys, RunKeys, GroupKeys):
    """Every key of the command line. The keys of the base that is named last come first."""

    @property
    def num_clients(self) -> int:
        """The number of clients; checked settings have one."""
        assert self.client_num_in_total is not None
        return self.client_num_in_total


@functools.cache
def register() -> None:
    """Make the schema and the functions that YAML files call known to Hydra, once in a process."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("either", lambda value, default: default if value is None else value)
    OmegaConf.register_new_resolver("fraction", lambda part, whole: 1.0 if part is None else part / whole)
    OmegaConf.register_new_resolver("scratch", lambda: str(scratch()))


def scratch() -> Path:
    """Return the folder for Hydra's own record of a `--multirun`; `main` removes it."""
    return Path(tempfile.gettempdir()) / f"fedpo-multirun-{os.getpid()}"


def has_own_data(config: Config) -> bool:
    """Return True if clients have data of their own, and the data sets are the server's alone."""
    return bool(config.partition["_target_"] == OWN_DATA)


def keys(schema: type = Config, prefix: str = "") -> list[str]:
    """Return all dotted keys of the schema, groups included."""
    found: list[str] = []
    for item in fields(schema):
        found.append(prefix + item.name)
        if isinstance(item.type, type) and is_dataclass(item.type):
            found += keys(item.type, f"{prefix}{item.name}.")
    return found


def kinds_of(key: str) -> tuple[Any, ...]:
    """Return the types that a dotted key accepts: (int, NoneType); () for a key that the schema does not have.

    A parameter of an open group, such as `loss.beta`, accepts `Any`.
    """
    group, _, parameter = key.partition(".")
    if group in OPEN_GROUPS and parameter:
        return (Any,)
    kind: Any = Config
    for name in key.split("."):
        found = {item.name: item.type for item in fields(kind)} if is_dataclass(kind) else {}
        if name not in found:
            return ()
        kind = found[name]
    return (kind,) if get_origin(kind) in (list, dict) else get_args(kind) or (kind,)


@functools.cache
def every_key() -> Mapping[str, Key]:
    """Return what the schema says of each dotted key; groups themselves are left out."""
    return dict(_described(Config, ""))


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each setting with its dotted key."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _described(schema: type, prefix: str) -> Iterator[tuple[str, Key]]:
    for item in fields(schema):
        if isinstance(item.type, type) and is_dataclass(item.type):
            yield from _described(item.type, f"{prefix}{item.name}.")
        elif "key" in item.metadata:
            yield prefix + item.name, item.metadata["key"]
