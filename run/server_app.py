"""Flower's server app, which `flwr run` starts at a SuperLink or beside Ray; `python main.py` does not use it."""

import sys
from collections.abc import Mapping
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fed.config.checks import Request
from fed.config.flower import run_settings
from fed.distributed import launch
from fed.errors import CannotContinue
from run import experiment
from run.folder import opened
from run.prepare import prepare
from run.remote import RemoteClients
from run.resume import as_begun, resumed

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation, and leave the results in `output_dir/exp_name/date_time` on this machine.

    Raises:
        RuntimeError: If the run cannot start or continue, with the reason in one line.
    """
    try:
        run(settings_of(context.run_config), grid)
    except (ValueError, CannotContinue) as error:
        line = " ".join(str(error).split())
        print(f"error: {line}", file=sys.stderr, flush=True)
        raise RuntimeError(line) from None


def settings_of(run_config: Mapping[str, Any]) -> Request:
    """Return the settings of `flwr run -c`, or those of the run that they resume.

    Raises:
        ValueError: If they do not work.
    """
    request = run_settings(run_config)
    return request if request.config.resume is None else resumed(request)


def run(request: Request, grid: Grid) -> None:
    """Prepare the run, and carry it out with clients behind this grid.

    Raises:
        ValueError: If the run cannot start.
        CannotContinue: If the run must end; it can be resumed.
    """
    with launch.joined(request.config.device, request.config.process_timeout) as device:
        plan = prepare(request, device)
        with opened(plan) as folder:
            print(f"results: {folder.absolute()}", flush=True)
            experiment.run(plan, folder, RemoteClients(grid, as_begun(request)))
