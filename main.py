"""Entry point: `python main.py key=value ...`. Composes the configuration and tells the user's mistakes in one line."""

import os
import shutil
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the demo's and most runs' texts are short
os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors to `main` instead of printing them
sys.path.insert(0, os.getcwd())  # a user's own my_ideas.py, beside main.py or in the working folder

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fed.config import arguments, checks, explain, schema
from fed.distributed import launch
from fed.errors import CannotContinue, Stopped


def main() -> int:
    """Run the command line; exit code 0, or 2 with one line on stderr for a mistake of the user's."""
    schema.register()
    try:
        arguments.check_arguments(sys.argv[1:])
    except ValueError as error:
        return _refuse(str(error))
    try:
        _compose_and_run()
    except (HydraException, OmegaConfBaseException) as error:
        return _refuse(explain.explain(f"{error}\n{error.__cause__ or ''}"))
    except KeyboardInterrupt:
        return 130
    finally:
        shutil.rmtree(schema.scratch(), ignore_errors=True)
    return 0


@hydra.main(version_base=None, config_path=str(Path(__file__).parent / "config"), config_name="config")
def _compose_and_run(composed: DictConfig) -> None:
    # torch and transformers take seconds to import: not before the command line is known to be right.
    from fed.distributed import stop
    from run import experiment
    from run.folder import create_folder, locked
    from run.prepare import prepare
    from run.processes import processes as processes_of
    from run.resume import resumed

    hydra_config = HydraConfig.get()
    sweeps = hydra_config.mode == RunMode.MULTIRUN
    if sweeps and launch.is_rank():
        sys.exit(_refuse("a sweep is refused under torchrun; use trainer_processes, or one torchrun per setting"))
    with ExitStack() as stack:
        try:
            settings = checks.checked(composed, list(hydra_config.overrides.task), dict(hydra_config.runtime.choices))
            if settings.config.resume is not None:
                settings = resumed(settings)
            if settings.config.engine == "ray":
                from run import ray_engine

                ray_engine.check_installed()
            processes = 1 if launch.is_rank() else processes_of(settings.config)
            if processes > 1:
                overrides = list(hydra_config.overrides.task)  # of a sweep, those of this run
                command = [sys.argv[0], *overrides, "hydra.mode=RUN"] if sweeps else sys.argv
                code = launch.launch(processes, command)
                if code:
                    sys.exit(code)
                return
            device = stack.enter_context(launch.joined(settings.config.device, settings.config.process_timeout))
            prepared = prepare(settings, device)
            folder = create_folder(prepared)
            stack.enter_context(locked(prepared, folder))
        except (ValueError, OmegaConfBaseException) as error:
            # Leaves by SystemExit: Hydra would print its own report of an exception.
            known = isinstance(error, OmegaConfBaseException)
            sys.exit(_refuse(explain.explain(str(error)) if known else str(error)))
        with stop.listening() if not launch.is_started_here() else nullcontext():
            try:
                if settings.config.engine == "ray":
                    ray_engine.run(prepared, folder)
                else:
                    experiment.run(prepared, folder)
            except CannotContinue as error:
                if not launch.is_first():  # of what all find, the first one tells; what only this one found is told too
                    time.sleep(launch.FIRST_SPEAKS)
                    raise
                sys.exit(_ended(f"error: {error}", folder, launch.TOLD if launch.is_started_here() else 1))
            except Stopped as stopped:
                # Those that a launcher started end well: it knows why.
                sys.exit(_ended(str(stopped), folder, 0 if launch.is_started_here() else 128 + stopped.number))


def _ended(reason: str, folder: Path, code: int) -> int:
    if launch.is_first():
        going_on = f"what was done is kept, go on with: python main.py resume={folder}"
        print(f"{' '.join(reason.split())}; {going_on}", file=sys.stderr)
    return code


def _refuse(message: str) -> int:
    if not launch.is_first():  # a mistake of all processes is told by the first: its end ends the others
        time.sleep(launch.FIRST_SPEAKS)
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return launch.MISTAKE


if __name__ == "__main__":
    sys.exit(main())
