"""engine=ray: a run on Flower's simulation engine, whose clients are trained by workers of Ray."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fed.config.checks import Request
from fed.config.schema import Config
from fed.cpu.runtime import allowed_cpus
from fed.tracking.run_files import CHECKPOINTS
from run import experiment
from run.client_app import flower_app
from run.plan import Plan
from run.remote import RemoteClients


def check_installed() -> None:
    """Refuse engine=ray where Ray is not installed.

    Raises:
        ValueError: If so.
    """
    if importlib.util.find_spec("ray") is None:
        raise ValueError("engine=ray needs Ray: pip install -c constraints.txt -e '.[ray]', or use engine=local")


def run(plan: Plan, folder: Path) -> None:
    """Carry out a plan as `experiment.run` does, with `clients_in_parallel` clients at once in other processes.

    Raises:
        CannotContinue, Stopped: As `experiment.run`.
    """
    from flwr.simulation import run_simulation

    server, ending = ServerApp(), list[BaseException]()
    request = Request(_settings_of_workers(plan), plan.given)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            experiment.run(plan, folder, RemoteClients(grid, request))
        except BaseException as error:  # Flower's thread would swallow some
            ending.append(error)

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray says that this will be the default
    app = flower_app(folder.absolute() / CHECKPOINTS / "clients")
    run_simulation(server, app, plan.num_clients, backend_config=resources(request.config))
    if ending:
        raise ending[0]


def _settings_of_workers(plan: Plan) -> Config:
    """Return the settings for workers, whose working folder may be another one."""
    config = plan.config
    return replace(
        config,
        cache_dir=os.path.abspath(config.cache_dir),
        data_dir=None if config.data_dir is None else os.path.abspath(config.data_dir),
        cpu_matmul=plan.machine.library or config.cpu_matmul,
        num_threads=config.num_threads
        or min(torch.get_num_threads(), allowed_cpus() // config.clients_in_parallel or 1),
    )


def resources(config: Config) -> dict[str, dict[str, Any]]:
    """Return the cores and GPUs of Ray and of each client, so that `clients_in_parallel` clients run at once.

    A cluster that RAY_ADDRESS names runs as many clients as fit, each with `num_threads` of its cores.
    """
    parallel, gpus = config.clients_in_parallel, 0.0
    if (config.device or "cuda").startswith("cuda") and torch.cuda.is_available():
        gpus = torch.cuda.device_count() / parallel
    client = {"num_cpus": float(config.num_threads or 1), "num_gpus": gpus if gpus < 1 else float(int(gpus))}
    here: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if "RAY_ADDRESS" not in os.environ:
        here |= {"num_cpus": client["num_cpus"] * parallel, "num_gpus": client["num_gpus"] * parallel}
    return {"client_resources": client, "init_args": here}
