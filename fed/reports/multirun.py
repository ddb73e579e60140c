"""Hydra's callback at the end of a `--multirun`, which draws its runs in a folder beside them."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException


class SweepPicture(Callback):
    """The picture of a sweep's finished runs, drawn if there are two or more; `config/config.yaml` names this class.

    If a run fails, Hydra ends the sweep without a call: `scripts/sweep.py` then draws the finished runs.
    """

    def __init__(self) -> None:
        self._before: dict[Path, set[Path]] = {}  # by parent folder: the folders there before the first run
        self._commands = [sys.argv[1:]]  # the command lines that runs of this sweep record

    def on_job_start(self, config: DictConfig, **_: object) -> None:
        """Remember the folders that are there already; a sweep may sweep their parent too."""
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


def _folders(place: Path) -> Iterator[Path]:
    with suppress(OSError, ValueError):
        yield from sorted(path for path in place.iterdir() if path.is_dir())
