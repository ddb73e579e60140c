"""The command line, `python main.py key=value ...`: settle the settings, then carry out the run they describe."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from pathlib import Path

os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to `main` instead of printing them
sys.path.insert(0, os.getcwd())  # a user's own my_ideas.py, beside main.py or in the working folder

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fed.config import arguments, checks, explain, places, schema, usage
from fed.config.checks import Request
from fed.distributed import launch
from fed.errors import CannotContinue, Stopped
from fed.tracking import run_files, steps


def main() -> int:
    """Run the command line and return the exit code: 0, or 2 after one line on stderr about a mistake of the user's."""
    schema.register()
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(usage.page(), end="")
        return 0
    if "--version" in sys.argv[1:]:
        from fed.tracking import versions

        print(versions.described())
        return 0
    try:
        arguments.check_arguments(sys.argv[1:])
    except ValueError as error:
        return _refuse(str(error))
    try:
        _compose_and_run()
    except (HydraException, OmegaConfBaseException) as error:
        return _refuse(explain.refusal(error))
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(schema.scratch(), ignore_errors=True)
    return 0


@hydra.main(version_base=None, config_path=str(schema.CONFIG_DIR), config_name="config")
def _compose_and_run(composed: DictConfig) -> None:
    with _refusals():
        request = settle(composed)
        if launched(request):
            return
    carry_out(request)


def settle(composed: DictConfig) -> Request:
    """Return the checked settings of the run; with `resume=` those that it began with.

    Raises:
        ValueError: If they do not work.
    """
    typed = HydraConfig.get()
    if _is_sweep() and launch.is_rank():
        raise ValueError("a sweep is refused under torchrun; use trainer_processes, or one torchrun per setting")
    if composed.client_num_in_total is None:
        composed = _with_all_clients(composed)
    request = checks.checked(composed, list(typed.overrides.task), dict(typed.runtime.choices))
    places.check_places(request.config)
    if request.config.resume is not None:
        run_files.check_resumed(request.config.resume, request.config.output_dir, request.config.exp_name)
    # torch and transformers take seconds to import: not before the command line is known to be right.
    steps.say_loading()
    if request.config.resume is not None:
        from run.resume import resumed

        request = resumed(request)
    if request.config.engine == "ray":
        from run.ray_engine import check_installed

        check_installed()
    return request


def _with_all_clients(composed: DictConfig) -> DictConfig:
    """Return the settings with the number of clients that the data has; for that the data are read.

    Raises:
        ValueError: If the settings do not leave that to the data, or the data cannot be read.
    """
    found = deepcopy(composed)
    found.client_num_in_total = 1  # until it is known
    config: schema.Config = OmegaConf.to_object(found)  # type: ignore[assignment]
    places.check_places(config)
    steps.say_loading()
    from run.data import count_clients

    found.client_num_in_total = count_clients(config)
    return found


def launched(request: Request) -> bool:
    """Start the processes of the run and wait for their end; return False if this process carries it out itself.

    Raises:
        SystemExit: With their exit code, if they failed.
    """
    from run.processes import num_processes

    count = 1 if launch.is_rank() else num_processes(request.config)
    if count == 1:
        return False
    steps.say(f"starting {count} processes")
    typed = list(HydraConfig.get().overrides.task)  # of a sweep, those of this run
    command = [sys.argv[0], *typed, "hydra.mode=RUN"] if _is_sweep() else sys.argv
    if code := launch.launch(count, command):
        sys.exit(code)
    return True


def carry_out(request: Request) -> None:
    """Carry the run out in this process.

    Raises:
        SystemExit: If it cannot begin, or ends early; one line on stderr says why.
    """
    from fed.distributed import stop
    from run import experiment
    from run.folder import opened
    from run.prepare import prepare

    with ExitStack() as stack:
        with _refusals():
            device = stack.enter_context(launch.joined(request.config.device, request.config.process_timeout))
            plan = prepare(request, device)
            folder = stack.enter_context(opened(plan))
        with nullcontext() if launch.is_started_here() else stop.listening(), _early_ends(folder):
            if request.config.engine == "ray":
                from run import ray_engine

                ray_engine.run(plan, folder)
            else:
                experiment.run(plan, folder)


def _is_sweep() -> bool:
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn a mistake of the user's into one line and an exit code; Hydra would print a report of its own."""
    try:
        yield
    except OmegaConfBaseException as error:
        sys.exit(_refuse(explain.explain(str(error))))
    except ValueError as error:
        sys.exit(_refuse(str(error)))


@contextmanager
def _early_ends(folder: Path) -> Iterator[None]:
    """Turn a failure that was foreseen, and a signal, into one line and an exit code."""
    try:
        yield
    except CannotContinue as error:
        if not launch.is_first():  # if all processes failed alike the first one says so; others speak after it
            time.sleep(launch.FIRST_SPEAKS)
            raise
        sys.exit(_ended(f"error: {error}", folder, launch.REPORTED if launch.is_started_here() else 1))
    except Stopped as stopped:
        # The launcher of these processes knows why they end.
        sys.exit(_ended(str(stopped), folder, 0 if launch.is_started_here() else 128 + stopped.number))


def _ended(reason: str, folder: Path, code: int) -> int:
    if launch.is_first():
        way_out = f"progress is saved; resume with: python main.py resume={folder}"
        print(f"{' '.join(reason.split())}; {way_out}", file=sys.stderr)
    return code


def _refuse(message: str) -> int:
    if not launch.is_first():  # the first process tells the mistake of all; its end ends the others
        time.sleep(launch.FIRST_SPEAKS)
    print(f"error: {explain.in_one_line(message)}", file=sys.stderr)
    return launch.MISTAKE


if __name__ == "__main__":
    sys.exit(main())
