"""Flower's server app: what `flwr run` starts at a SuperLink, or beside Ray. `python main.py` needs none of it."""

import os
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

import experiment
import plan
from fed import launch
from fed.checks import Settings
from fed.endings import CannotGoOn
from fed.resume import resumed
from fed.run_config import run_settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation; the results are in `output_dir/exp_name/date_time` of the machine this runs on.

    Raises:
        RuntimeError: With one line that says why the run cannot begin or go on.
    """
    try:
        settings = run_settings(context.run_config)
        run(settings if settings.config.resume is None else resumed(settings), grid)
    except (ValueError, CannotGoOn) as error:
        line = " ".join(str(error).split())
        print(f"error: {line}", file=sys.stderr, flush=True)
        raise RuntimeError(line) from None


def run(settings: Settings, grid: Grid) -> None:
    """Prepare the run, then serve clients behind this grid.

    Raises:
        ValueError: If it cannot begin.
        CannotGoOn: If it cannot go on.
    """
    with launch.joined(settings.config.device, settings.config.process_timeout) as device:
        prepared = plan.prepare(settings, device)
        folder = experiment.create_folder(prepared)
        with experiment.locked(prepared, folder):
            print(f"results: {folder.absolute()}", flush=True)
            experiment.run(prepared, Path(folder), grid)
