"""The files of config/, by group: each is a choice, `GROUP=NAME`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fed.config.schema import CONFIG_DIR, flat


def files(group: str) -> list[Path]:
    """Return the files of a group, or of the presets, by name."""
    return sorted((CONFIG_DIR / group).glob("*.yaml"), key=lambda path: path.stem)


def names(group: str) -> list[str]:
    """Return the choices of a group, or the presets."""
    return [path.stem for path in files(group)]


def chosen(group: str, settings: Mapping[str, object]) -> str | None:
    """Return the choice of a group that a run was made with, as far as its settings tell; None if they do not.

    Args:
        group: A group whose files name a `_target_`.
        settings: All settings of the run by dotted key.
    """
    found = [path for path in files(group) if own(path, group).get("_target_") == settings[f"{group}._target_"]]
    if len(found) > 1:  # a file's fixed values tell it from others of the same target
        found = [path for path in found if all(settings.get(key) == value for key, value in _fixed(path, group))]
    return found[0].stem if len(found) == 1 else None


def _fixed(path: Path, group: str) -> list[tuple[str, object]]:
    """Return the dotted keys and values in a file of a group that no other setting fills."""
    node: Any = OmegaConf.to_container(OmegaConf.load(path))
    every = flat(node if group in node else {group: node})
    return [(key, value) for key, value in every if "${" not in str(value)]


def comment(path: Path) -> str:
    """Return the first comment of a file, which says what it is.

    Raises:
        ValueError: If there is none.
    """
    comments = re.findall(r"(?m)^# (?!@package)(.*)$", path.read_text(encoding="utf-8"))
    if not comments:
        raise ValueError(f"{path} has no comment that says what it is; begin it with one line")
    return str(comments[0])


def own(path: Path, group: str) -> dict[str, Any]:
    """Return the parameters in a file of a group, those of other groups left out."""
    text = path.read_text(encoding="utf-8")
    node: Any = OmegaConf.to_container(OmegaConf.create(text))
    return dict(node[group] if "@package _global_" in text else node)


def targets(group: str) -> list[str]:
    """Return the classes or functions, by dotted path, that the files of a group name."""
    return sorted({str(own(path, group)["_target_"]) for path in files(group)})


def usual() -> dict[str, str | None]:
    """Return the choice of each group that a run has if nothing is typed."""
    listed: Any = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / "config.yaml"))["defaults"]  # type: ignore[index,call-overload]
    return {group: name for item in listed if isinstance(item, dict) for group, name in item.items()}
