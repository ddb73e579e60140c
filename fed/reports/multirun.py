"""Hydra's callback of a `--multirun`, which names the values of each run and draws all runs in a folder beside them."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


class SweepPicture(Callback):
    """A line before each run of a sweep, and a picture of the finished runs if there are two or more.

    `config/config.yaml` names this class. If a run fails, Hydra ends the sweep without a call: `scripts/sweep.py` then
    draws the finished runs.
    """

    def __init__(self) -> None:
        self._before: dict[Path, set[Path]] = {}  # by parent folder: the folders there before the first run
        self._commands = [sys.argv[1:]]  # the command lines that runs of this sweep record
        self._swept: dict[str, int] = {}  # in a sweep: each key that has several values, and their number

    def on_multirun_start(self, config: DictConfig, **_: object) -> None:
        """Remember which keys have several values."""
        self._swept = _swept(config)

    def on_job_start(self, config: DictConfig, **_: object) -> None:
        """Print the values of this run; remember the folders that are there already, whose parent may be swept too."""
        if self._swept:
            values = " ".join(text for text in config.hydra.overrides.task if text.partition("=")[0] in self._swept)
            count = math.prod(self._swept.values())
            print(f"run {config.hydra.job.num + 1} of {count}: {values}", flush=True)
        with suppress(OmegaConfBaseException):  # a ${...} that names nothing; the run will say so
            place = Path(config.output_dir, config.exp_name)
            self._before.setdefault(place, set(_folders(place)))
            self._commands.append([*config.hydra.overrides.task, "hydra.mode=RUN"])  # a run of several processes

    def on_multirun_end(self, config: DictConfig, **_: object) -> None:
        """Draw the new runs and print the path of the picture."""
        # These import torch, which takes seconds: not before the command line is known to be right.
        from fed.reports.sweeps import draw, finished

        new = [folder for place, before in self._before.items() for folder in _folders(place) if folder not in before]
        runs = finished([folder for folder in new if self._is_ours(folder)])
        if len(runs) < 2:
            return
        folder = runs[0].folder.parent / f"sweep_{datetime.now():%Y-%m-%d_%H-%M-%S}"
        try:
            print(f"sweep of {len(runs)} runs: {draw(runs, folder)}")
        except (OSError, ValueError) as error:
            print(f"no picture of the sweep: {error}", file=sys.stderr)

    def _is_ours(self, folder: Path) -> bool:
        """Return True if this command line started the run, and no other at the same time."""
        from fed.tracking.run_files import ENVIRONMENT

        with suppress(OSError, ValueError, KeyError):
            return json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))["argv"][1:] in self._commands
        return False


def _swept(config: DictConfig) -> dict[str, int]:
    """Return the number of values of each key that has several, as Hydra's own sweeper combines them."""
    params = config.hydra.sweeper.get("params") or {}
    typed = [*(f"{key}={values}" for key, values in params.items()), *config.hydra.overrides.task]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    counts = {  # what is typed wins over a preset's values
        one.get_key_element(): len(list(one.sweep_string_iterator())) if one.is_discrete_sweep() else 1
        for one in parser.parse_overrides(typed)
    }
    return {key: count for key, count in counts.items() if count > 1}


def _folders(place: Path) -> Iterator[Path]:
    with suppress(OSError, ValueError):
        yield from sorted(path for path in place.iterdir() if path.is_dir())
