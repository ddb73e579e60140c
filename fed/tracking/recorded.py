"""The settings of a run, read from its folder, which may come from anybody."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fed.config.moved import name_as_now
from fed.config.plain import from_plain
from fed.config.schema import Config
from fed.tracking.run_files import CONFIG

LARGEST = 10**6  # bytes of config.yaml


def recorded_settings(folder: Path, *, whole: bool = False) -> Config:
    """Return the settings of a run; no code that they name is imported.

    Args:
        folder: The folder of the run.
        whole: Refuse settings without a key that runs have today; otherwise that key has its default.

    Raises:
        ValueError: If they cannot be read as settings.
    """
    path = folder / CONFIG
    try:
        found: Mapping[str, Any] = OmegaConf.to_container(  # type: ignore[assignment]
            OmegaConf.create(_without_aliases(path)), resolve=False
        )
        config = from_plain(found)
        for key in sorted(Config.__dataclass_fields__.keys() - found.keys()) if whole else ():
            raise ValueError(f"it lacks {key}")
        name_as_now(config.partition)
    except Exception as error:  # a damaged file makes the readers raise anything
        raise ValueError(f"{path} cannot be read as the settings of a run: {error}") from error
    return config


def _without_aliases(path: Path) -> str:
    """Return the text of a YAML file that no alias makes larger than it is.

    Raises:
        ValueError: If it is large, or has aliases, as no run writes them.
    """
    with path.open(encoding="utf-8") as file:
        text = file.read(LARGEST + 1)
    if len(text) > LARGEST or any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
        raise ValueError("it is larger than a run writes it, or has aliases")
    return text
