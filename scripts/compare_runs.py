"""The runs of a comparison: their settings, and whether each is finished, cut off or still to be started."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fed.config import composing, effect
from fed.config.schema import CONFIG_DIR, every_key
from fed.config.scopes import of_role
from fed.reports.runs import Run
from fed.tracking.run_files import CONFIG

ROOT = Path(__file__).resolve().parent.parent
# Keys that say where a run is kept, or that a resumed run may have otherwise: they do not make it another run.
NOT_WHAT = of_role("place", "upkeep")
OF_FEDERATION = ("strategy", "privacy", "faults")  # groups that training without a federation does not use


@dataclass(frozen=True)
class Wanted:
    """A run that the comparison needs."""

    method: str
    seed: int
    arguments: tuple[str, ...]  # of main.py, without the folders
    folder: Path  # holds the runs of this method and seed

    @property
    def name(self) -> str:
        """The name of its folder, which also stands before each line it prints."""
        return self.folder.name

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings that the run will have.

        Raises:
            ValueError, HydraException, OmegaConfBaseException: If they are refused.
        """
        return _what(asdict(composing.request(self.arguments).config))

    def found(self) -> Run | None:
        """Return the newest finished run with these settings, else the newest that was cut off, else None."""
        runs = [Run(path.parent) for path in sorted(self.folder.glob(f"*/{CONFIG}"))]
        same = [run for run in runs if _has(run, self.config)]
        return max(same, key=lambda run: (run.finished, run.folder.name), default=None)

    def command(self, run: Run | None) -> list[str]:
        """Return the command that starts the run, or that resumes one that was cut off."""
        if run is not None:
            return ["main.py", f"resume={run.folder}"]
        return ["main.py", *self.arguments, f"output_dir={self.folder.parent}", f"exp_name={self.name}"]


def method_arguments(mode: str, strategy: str, variant: Sequence[str], typed: Sequence[str]) -> list[str]:
    """Return the typed settings that a method uses, followed by its own.

    Args:
        mode: federated, centralized or local.
        strategy: A file of config/strategy/; unused without a federation.
        variant: Settings of this method only; they win.
        typed: Settings of all methods.
    """
    own = {_key(argument) for argument in variant}
    kept = [argument for argument in typed if _key(argument) not in own and reads(mode, strategy, _key(argument))]
    chosen = [f"strategy={strategy}"] if mode == "federated" else []
    return [f"mode={mode}", *chosen, *kept, *variant]


def reads(mode: str, strategy: str, key: str) -> bool:
    """Return True if a method uses a key."""
    known = every_key().get(key)
    if mode != "federated":
        idle = known is not None and any(idle.key == "mode" and idle.applies(mode) for idle in known.idle)
        federated = known is not None and known.scope.federated_only
        return not (idle or federated or key.split(".")[0] in OF_FEDERATION)
    text = _strategy_file(strategy)
    if key.startswith("strategy."):
        return re.search(rf"^\s*{re.escape(key.removeprefix('strategy.'))}:", text, re.MULTILINE) is not None
    group, read = (known and known.read_by) or ("", "")
    return group != "strategy" or effect.reads(text, read)


def _strategy_file(strategy: str) -> str:
    path = CONFIG_DIR / "strategy" / f"{strategy}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""  # composing refuses an unknown one


def _key(argument: str) -> str:
    return argument.lstrip("+~").partition("=")[0]


def _has(run: Run, config: dict[str, Any]) -> bool:
    try:
        return _what(run.config) == config
    except Exception:  # a damaged file may make the reader raise anything
        return False


def _what(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in NOT_WHAT}
