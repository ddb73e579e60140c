"""Settings as the command line and as Flower give them."""

import functools
import shlex
from collections.abc import Mapping

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from fed.config import schema
from fed.config.checks import Request, checked
from fed.config.meaning import shown
from fed.config.schema import GROUPS


def settings_of(*typed: str) -> Request:
    """Return what `main.py *typed` would run, without the tenth of a second that Hydra takes for each composition."""
    pairs = [argument.lstrip("+").split("=", 1) for argument in typed]
    choices = {key: value for key, value in pairs if key in GROUPS}
    node = of_groups(*(f"{key}={value}" for key, value in choices.items())).copy()
    for key, value in pairs:
        if key not in GROUPS:
            OmegaConf.update(node, key, yaml.safe_load(value), force_add=True)
    return checked(node, typed, {**DEFAULTS, **choices})


DEFAULTS = {"model": "demo", "loss": "dpo", "partition": "iid", "strategy": "fedpo", "privacy": "none"}


@functools.cache
def of_groups(*groups: str) -> DictConfig:
    return composed(*groups)


def composed(*overrides: str) -> DictConfig:
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(schema.CONFIG_DIR), version_base=None):
        return compose("config", list(overrides))


def through_flower(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the run's configuration as `flwr run -c 'settings="KEY=VALUE ..."'` gives it."""
    return {"settings": shlex.join(f"{key}={shown(value)}" for key, value in settings.items())}
