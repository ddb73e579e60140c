"""Checks of each value by itself."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from fed.config.components import check_path
from fed.config.explain import REFUSED, listed, nearest
from fed.config.meaning import shown, value_of
from fed.config.schema import OPEN_GROUPS, Config, every_key


def check_values(config: Config) -> None:
    """Refuse a value that the schema does not allow, and one that cannot work whatever the others are.

    Raises:
        ValueError: Naming the key, its value, and what was expected.
    """
    for group in OPEN_GROUPS:
        check_path(f"{group}._target_", getattr(config, group).get("_target_"))
    for name, known in every_key().items():
        value = value_of(config, name)
        if value is None:
            continue
        if known.choices and value not in known.choices:
            raise ValueError(_no_choice(name, str(value), known.choices))
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} is out of range; expected a finite number")
        if known.limits is not None and isinstance(value, int | float) and not known.limits.hold(value):
            raise ValueError(f"{name}={value} is out of range; expected {known.limits.text}")
    _check_targets(config.lora.target_modules)
    check_name(config.exp_name)
    _check_loss(config.loss)


def _no_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    if reason := REFUSED.get(f"{name}={value}"):
        return f"{name}={value} is refused: {reason}"
    return f"{name}={value} is unknown; expected {listed(choices)}{nearest(value, choices)}"


def _check_targets(wanted: object) -> None:
    """Check the layers that get an adapter, as the user named them."""
    if wanted == []:
        raise ValueError("lora.target_modules is empty; give at least one, or leave it out")
    is_list = isinstance(wanted, list) and all(isinstance(name, str) for name in wanted)
    if not (wanted is None or is_list or wanted == "all-linear"):
        raise ValueError(
            f"lora.target_modules={shown(wanted)} is neither a list of names nor all-linear; give "
            "'lora.target_modules=[q_proj,v_proj]' or leave it out"
        )


def check_name(name: str) -> None:
    """Refuse an `exp_name` that is not the name of one folder.

    Raises:
        ValueError: Saying what was expected.
    """
    if not re.fullmatch(r"[^/\\\x00-\x1f\x7f]+", name) or name.strip(". ") == "" or len(name.encode()) > 255:
        raise ValueError(
            f"exp_name={name:.80} cannot be the name of a folder; expected a short name without slashes, "
            "e.g. exp_name=a"
        )


def _check_loss(loss: Mapping[str, Any]) -> None:
    """Check what losses read: every loss has a `beta`, which scales rewards; the losses of losses/ know the others."""
    ranges: dict[str, tuple[Callable[[float], bool], str]] = {"beta": (lambda value: value > 0, "a number above 0")}
    if str(loss["_target_"]).startswith("losses."):
        ranges["label_smoothing"] = (lambda value: 0 <= value < 0.5, "a number from 0 to below 0.5")
    for name, (fits, text) in ranges.items():
        value = loss.get(name, 0.1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits(value):
            raise ValueError(f"loss.{name}={value} is out of range; expected {text}")
