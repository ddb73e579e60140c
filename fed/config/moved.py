"""Classes whose module has moved since runs were first kept: settings that a run recorded get the present names."""

from typing import Any

MOVED = {"fed.partition": "fed.data.partition"}  # the old name of a module, and the present one


def name_as_now(group: dict[str, Any]) -> None:
    """Change the `_target_` of a recorded group, such as `partition`, to its present dotted path."""
    module, point, name = str(group.get("_target_", "")).rpartition(".")
    if module in MOVED:
        group["_target_"] = f"{MOVED[module]}{point}{name}"
