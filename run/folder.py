"""The folder of a run: created, opened again to resume, locked, and divided among the run's federations."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from omegaconf import OmegaConf

from fed.checkpoints.checkpointer import rounds
from fed.config.schema import Config
from fed.config.sections.training import STATES_PER_WEIGHT
from fed.data.partition_file import write_partition
from fed.files import free_space, leads_out, write_whole
from fed.tracking import run_folder
from fed.tracking.run_files import CHECKPOINTS, CONFIG, PARTITION_FILE, POLICY
from run.plan import Plan


@dataclass(frozen=True)
class Place:
    """A federation's clients, and the folders of its results."""

    client_ids: Sequence[int]
    checkpoints: Path
    policy: Path


def places_of(plan: Plan, folder: Path) -> list[Place]:
    """Return one place for all clients, or in mode=local one for each client."""
    everyone = range(plan.num_clients)
    if plan.config.mode != "local":
        return [Place(everyone, _checkpoints(folder), folder / POLICY)]
    return [Place([k], _checkpoints(folder, k), folder / POLICY / f"client-{k}") for k in everyone]


def _checkpoints(folder: Path, alone: int | None = None) -> Path:
    """Return the folder of the checkpoints of all clients or, in mode=local, of one of them."""
    return folder / CHECKPOINTS if alone is None else folder / CHECKPOINTS / f"client-{alone}"


def is_finished(config: Config) -> bool:
    """Return True if the run to resume has the checkpoint of its last round."""
    assert config.resume is not None
    last = config.num_clients - 1 if config.mode == "local" else None
    return max(rounds(_checkpoints(Path(config.resume), last)), default=0) >= config.comm_round


@contextmanager
def opened(plan: Plan) -> Iterator[Path]:
    """Create the run's folder, or open that of the run to resume, and keep other runs from writing there meanwhile.

    The folder holds everything that is known before training. Of several processes the first one does it, and all get
    the folder. A folder that another run is writing is left as it is.

    Raises:
        ValueError: If the folder cannot be written, is in use, or belongs to a run with other data.
    """
    resume = plan.config.resume
    with ExitStack() as stack:

        def lock(folder: Path) -> Path:
            stack.enter_context(run_folder.locked(folder))
            return folder

        def make() -> Path:
            return lock(_create_folder(plan)) if resume is None else _reopen_folder(plan, lock(Path(resume)))

        yield plan.machine.mesh.world.from_first_or_raise(make)


def _create_folder(plan: Plan) -> Path:
    config = plan.config
    run_folder.check_cache_folder(config.cache_dir)
    _check_space(plan)
    folder = run_folder.create_run_folder(
        config.output_dir,
        config.exp_name,
        _yaml(config),  # with what `mode` implies
        plan.policy.device,
        plan.machine.cpu,
        library=plan.machine.library,
        given=sorted(plan.given),
    )
    _write_partition(plan, folder / PARTITION_FILE)
    return folder


def _reopen_folder(plan: Plan, folder: Path) -> Path:
    config = plan.config
    for path in folder.rglob("*"):
        if path.is_symlink() and leads_out(path, folder):
            raise ValueError(f"resume={folder}: {path} is a link out of the folder, which no run has made; remove it")
    run_folder.check_cache_folder(config.cache_dir)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / PARTITION_FILE
        _write_partition(plan, again)
        if (folder / PARTITION_FILE).is_file() and (folder / PARTITION_FILE).read_bytes() != again.read_bytes():
            raise ValueError(
                f"resume={folder}: the data differ from those recorded in its {PARTITION_FILE}; start a new run"
            )
        try:
            shutil.copyfile(again, folder / PARTITION_FILE)
            write_whole(folder / CONFIG, _yaml(replace(config, resume=None)).encode())
        except OSError as error:
            raise ValueError(f"resume={folder} cannot be written: {error}") from error
    complete = max((done for place in places_of(plan, folder) for done in rounds(place.checkpoints)), default=0)
    if complete > config.comm_round:
        raise ValueError(f"comm_round={config.comm_round} is less than the {complete} rounds that are done; raise it")
    return folder


def _write_partition(plan: Plan, path: Path) -> None:
    rows = plan.pairs.rows
    write_partition(path, rows.split.parts, rows.split.pool, rows.split.test, rows.names)


def _check_space(plan: Plan) -> None:
    """Refuse a disk that is too small for what the run keeps at a time; what a strategy keeps is not counted.

    Raises:
        ValueError: If the disk is too small.
    """
    config, model = plan.config, plan.policy.model
    if config.debug:
        return
    size = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)  # travels and is kept in float32
    kept = size  # the final model
    if config.checkpoint_every:
        met = min(plan.num_clients, plan.clients_per_round * config.comm_round)
        slots = STATES_PER_WEIGHT[config.optimizer] * met if config.client_optimizer == "persist" else 0
        kept += size * (config.checkpoint_keep + 2 + slots)  # the best one, and the one that is being written
    within = size * plan.clients_per_round if config.checkpoint_every == 1 and config.checkpoint_within_round else 0
    free = free_space(Path(config.output_dir))
    if kept + within > free:
        less = f" (with checkpoint_within_round=false {kept / 1e9:.2g} GB)" if within else ""
        raise ValueError(
            f"output_dir={config.output_dir} has {free / 1e9:.2g} GB free, the run keeps up to "
            f"{(kept + within) / 1e9:.2g} GB{less}; give another output_dir or make room"
        )


def _yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
