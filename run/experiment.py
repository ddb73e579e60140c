"""One experiment: run a plan, leave the results in a folder."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from omegaconf import OmegaConf
from rich.console import Console

from clients.app import ClientPairs
from run import resume
from fed.tracking import run_folder
from fed.model.arrays import load_arrays, model_tensors, snapshot
from fed.config.schema import Config, flat
from fed.cpu.runtime import has_bfloat16, peak_memory
from fed.reports.curves import curves
from fed.errors import writing
from fed.checkpoints.checkpointer import Keeper, Kept, rounds
from fed.data.partition import write_partition
from fed.model.policy import Policy, save_policy
from fed.privacy import described
from fed.distributed.ranks import Mesh
from fed.model.references import weights_hash
from fed.tracking.log import Relay
from fed.distributed.fsdp import Parts
from fed.tracking.tracker import Tracker
from run.federation import MODEL_HASH, Elsewhere, Place, federate, federate_elsewhere
from run.prepare import Plan, references

PARTITION = "partition.json"
STATES = {"RMSprop": 1, "AdamW": 2, "Adam": 2, "SGD": 0}  # numbers that an optimizer keeps for each weight


def create_folder(plan: Plan) -> Path:
    """The run's folder with everything that is known before it starts; of several processes the first one makes it.

    Raises:
        ValueError: If it cannot be written, or the run that is to go on there is another one.
    """
    make = _create_folder if plan.config.resume is None else _reopen_folder
    return plan.mesh.world.from_first_or_raise(lambda: make(plan))


@contextmanager
def locked(plan: Plan, folder: Path) -> Iterator[None]:
    """Inside, no other run writes into the folder.

    Raises:
        ValueError: If one does.
    """
    with ExitStack() as stack:
        plan.mesh.world.from_first_or_raise(lambda: stack.enter_context(run_folder.locked(folder)))
        yield


def _create_folder(plan: Plan) -> Path:
    config = plan.config
    run_folder.check_cache_folder(config.cache_dir)
    _check_space(plan)
    folder = run_folder.create_run_folder(
        config.output_dir,
        config.exp_name,
        _yaml(config),  # with what `mode` implies
        plan.policy.device,
        plan.cpu,
        library=plan.library,
        given=sorted(plan.given),
    )
    _write_partition(plan, folder / PARTITION)
    return folder


def _write_partition(plan: Plan, path: Path) -> None:
    write_partition(path, plan.split.parts, plan.split.pool, plan.split.test)


def _reopen_folder(plan: Plan) -> Path:
    config = plan.config
    assert config.resume is not None
    folder = Path(config.resume)
    run_folder.check_cache_folder(config.cache_dir)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch) / PARTITION
        _write_partition(plan, again)
        if (folder / PARTITION).is_file() and (folder / PARTITION).read_bytes() != again.read_bytes():
            raise ValueError(f"resume={folder}: the data are not those that its {PARTITION} tells of; start a new run")
        try:
            shutil.copyfile(again, folder / PARTITION)
            run_folder.write_whole(folder / run_folder.CONFIG, _yaml(replace(config, resume=None)).encode())
        except OSError as error:
            raise ValueError(f"resume={folder} cannot be written: {error}") from error
    behind = max((done for place in _places(plan, folder) for done in rounds(place.checkpoints)), default=0)
    if behind > config.comm_round:
        raise ValueError(f"comm_round={config.comm_round} is less than the {behind} rounds that are done; raise it")
    return folder


def _check_space(plan: Plan) -> None:
    """Whether the disk takes what the run keeps at a time, as far as that is known: a strategy may keep more."""
    config, model = plan.config, plan.policy.model
    if config.debug:
        return
    size = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)  # travels and is kept in float32
    kept = size  # the final model
    if config.checkpoint_every:
        met = min(plan.num_clients, plan.clients_per_round * config.comm_round)
        slots = STATES[config.optimizer] * met if config.client_optimizer == "persist" else 0
        kept += size * (config.checkpoint_keep + 2 + slots)  # the best one, and that which is being written
    within = size * plan.clients_per_round if config.checkpoint_every == 1 and config.checkpoint_within_round else 0
    free = run_folder.free_space(Path(config.output_dir))
    if kept + within > free:
        less = f" (with checkpoint_within_round=false {kept / 1e9:.2g} GB)" if within else ""
        raise ValueError(
            f"output_dir={config.output_dir} has {free / 1e9:.2g} GB free, the run keeps up to "
            f"{(kept + within) / 1e9:.2g} GB{less}; give another output_dir or make room"
        )


def _yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def _places(plan: Plan, folder: Path) -> list[Place]:
    """One for all clients, or in mode=local one for each, in turn."""
    everyone = range(plan.num_clients)
    if plan.config.mode != "local":
        return [Place(everyone, folder / "checkpoints", folder / "policy")]
    return [Place([k], folder / "checkpoints" / f"client-{k}", folder / "policy" / f"client-{k}") for k in everyone]


def run(plan: Plan, folder: Path, clients: Elsewhere | None = None) -> None:
    """Train, evaluate, and write metrics, curves and the final model into `folder`; None: the clients are here."""
    config, writes = plan.config, plan.mesh.world.is_first
    console = Console(quiet=not writes)
    with _tracker(plan, folder, console) if writes else nullcontext(_relay(plan.mesh)) as tracker:
        _describe(plan, console)
        initial = snapshot(model_tensors(plan.policy.model))
        model = weights_hash(plan.policy)
        with tracker.phase("reference"):
            plan = _with_references(plan, model, tracker.reference)
        places = _places(plan, folder)
        keepers = [_keeper(plan, place, model) for place in places]
        first, kept = 0, None
        if config.resume:
            for change in resume.differences(folder, run_folder.surroundings(plan.policy.device)):
                console.print(f"warning: was {change}: the last bits may differ", soft_wrap=True, highlight=False)
            first, kept = _go_on(keepers, tracker, console, clients is None)
        if kept is None:
            tracker.settings(hyperparameters(config))
        for place, keeper in list(zip(places, keepers, strict=True))[first:]:
            if clients is None:
                final = federate(plan, tracker, initial, place, keeper, kept, console)
            else:
                assert isinstance(tracker, Tracker)
                final = federate_elsewhere(plan, clients, tracker, initial, place, keeper, kept, console)
            kept = None
            _save(plan, final, place.policy)
        if config.mode == "local":
            tracker.everyone()
        memory = plan.mesh.world.gather(_memory(plan.policy.device))
        with writing(folder / "summary.json"):
            summary = tracker.summary(**memory[0], **({"processes": memory} if len(memory) > 1 else {}))
    if not writes:
        return
    with writing(folder / "curves.png"):
        picture = curves(folder)
    console.print(f"{summary['pairs']} pairs in {summary['wall_seconds']:.0f} s; results in {folder}", soft_wrap=True)
    console.print(f"curves: {picture}  (or: tensorboard --logdir {folder / 'tensorboard'})", soft_wrap=True)


def _keeper(plan: Plan, place: Place, model: str) -> Keeper:
    config, mesh = plan.config, plan.mesh
    return Keeper(
        place.checkpoints,
        mesh,
        Parts(plan.policy.model),
        {
            "number of processes": mesh.world.count,
            "clients_in_parallel": mesh.groups.count,
            MODEL_HASH: model,
        },
        every=0 if config.debug else config.checkpoint_every,
        last=config.checkpoint_keep,
        num_rounds=config.comm_round,
    )


def _go_on(
    keepers: Sequence[Keeper], tracker: Tracker | Relay, console: Console, is_local: bool
) -> tuple[int, Kept | None]:
    """The federation of a resumed run that was cut off, those before it being done, and its newest checkpoint."""

    def on_damage(message: str) -> None:
        console.print(f"{message}; the one before is used", soft_wrap=True, highlight=False)

    for number, keeper in reversed(list(enumerate(keepers))):
        kept = keeper.newest(on_damage)
        if kept is not None:
            console.print(f"going on after round {kept.server_round}, from {kept.folder}", soft_wrap=True)
            return number, kept
    tracker.start_over()
    of_the_first = "; of the first one, clients that are done are kept" if is_local else ""
    console.print(f"no round is complete yet{of_the_first}", soft_wrap=True)
    return 0, None


def _relay(mesh: Mesh) -> Relay:
    """For all processes but the first; one of each group speaks for its clients."""
    return Relay(keeps=mesh.groups.index > 0 and mesh.own.is_first)


def _tracker(plan: Plan, folder: Path, console: Console) -> Tracker:
    return Tracker(
        folder,
        tensorboard=plan.config.tensorboard.enabled,
        num_rounds=plan.config.comm_round,
        clients_per_round=plan.clients_per_round,
        console=console,
    )


def hyperparameters(config: Config) -> dict[str, object]:
    """All settings that are set, by dotted name; lists as text."""
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flat(asdict(config))
        if value is not None
    }


def _with_references(plan: Plan, model: str, progress: Callable[[int, int], None]) -> Plan:
    """The plan with every example's reference column, from the initial weights; `progress` is told pairs and all pairs.

    One pass over all training pairs, in batches of like length; evaluated lists by themselves, in the batches that
    evaluation will use, so that untrained weights tie exactly. Clients that are elsewhere fill in theirs, and those
    that a run may never meet get theirs at the first visit.
    """
    config, done = plan.config, 0
    here = plan.clients if config.engine == "local" and plan.meets_all else []
    trains = 0 if plan.supervised else sum(len(client.train) for client in here)
    total = trains + len(plan.validation) + len(plan.test) + sum(len(client.held_out) for client in here)

    def on_pairs(pairs: int) -> None:
        nonlocal done
        done += pairs
        progress(done, total)

    fill = functools.partial(references(plan, model), on_pairs=on_pairs)
    if not here:
        return replace(plan, validation=fill(plan.validation), test=fill(plan.test))
    train = [example for client in plan.clients for example in client.train]
    trained = iter(train if plan.supervised else fill(train))
    validation, test = fill(plan.validation), fill(plan.test)
    clients = []
    for client in plan.clients:
        held_out = fill(client.held_out)
        scoring = {"server": validation, "client": held_out, "test": test}[config.accuracy_on]
        clients.append(ClientPairs([next(trained) for _ in client.train], held_out, scoring))
    return replace(plan, validation=validation, test=test, clients=clients)


def _save(plan: Plan, arrays: ArrayRecord, directory: Path) -> None:
    load_arrays(plan.policy.model, arrays)
    if plan.config.debug:
        return
    writes = plan.mesh.world.is_first
    with writing(directory):
        if writes:
            shutil.rmtree(directory, ignore_errors=True)  # of a run that was cut off here
        save_policy(plan.policy, directory, write=writes)


def _memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process, 1e9 bytes."""
    memory = {"peak_memory_gb": peak_memory() / 1e9}
    if device.type == "cuda":
        memory["peak_device_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return memory


def _how(policy: Policy, config: Config) -> str:
    """How its steps are computed, in a few words."""
    layout = policy.layout
    parts = {
        "padded": not layout.packing,
        "packed": layout.packing,
        "prompts shared": layout.packing and layout.prefix_sharing,
        "fused head": layout.fused_head,
        f"computing in {str(policy.compute_dtype).removeprefix('torch.')}": policy.compute_dtype is not None,
        "activation checkpointing": config.activation_checkpointing,
    }
    return ", ".join(part for part, applies in parts.items() if applies)


def _processes(plan: Plan) -> str:
    """What the processes of the run share, in words."""
    mesh, text = plan.mesh, f"{plan.mesh.world.count} processes"
    if mesh.groups.count > 1:
        text += f": {mesh.groups.count} clients at once"
    if mesh.own.count > 1:
        split = "each model" if plan.policy.root is not None else "each layer"
        text += f"{',' if mesh.groups.count > 1 else ':'} {split} split over {mesh.own.count}"
    return text


def _sizes(plan: Plan) -> str:
    sizes = [len(client.train) for client in plan.clients]
    return f"{sum(sizes)} pairs ({min(sizes)} to {max(sizes)} each)" if sizes else "pairs of their own"


def _describe(plan: Plan, console: Console) -> None:
    """Say in a few lines what is about to run."""
    config, split, model = plan.config, plan.split, plan.policy.model
    engine = "" if config.engine == "local" else f" (engine={config.engine})"
    lines = [
        f"{config.exp_name}: {config.mode}{engine}, {plan.num_clients} clients x {config.comm_round} rounds, "
        f"{config.strategy['_target_'].rsplit('.', 1)[-1]}",
        f"model: {config.model.gguf_file or config.model.name_or_path}, {model.num_parameters() / 1e6:.1f} M "
        "parameters, "
        f"{config.model.policy_dtype} on {plan.policy.device}, {_how(plan.policy, config)}",
        f"cpu: {plan.cpu}",
        f"data: {'+'.join(config.datasets) or 'none'}; clients train on {_sizes(plan)}, server validates on "
        f"{len(plan.validation)}, test {len(plan.test)}",
    ]
    computes = (plan.policy.compute_dtype, model.dtype)
    if plan.policy.device.type == "cpu" and torch.bfloat16 in computes and not has_bfloat16():
        lines.append("this CPU has no bfloat16 instructions and emulates them: float32 is faster here")
    if plan.skipped:
        lines.append("skipped rows: " + ", ".join(f"{count} {reason}" for reason, count in plan.skipped.items()))
    if split.overlapping:
        lines.append(f"dropped {split.overlapping} training pairs whose conversation is in the test pairs")
    if config.lora.r:
        lines.append(f"lora: {sum(p.numel() for p in model.parameters() if p.requires_grad)} trained weights")
    if config.privacy.kind != "none":
        lines.append(described(config.privacy, config.comm_round))
    elif "DifferentialPrivacy" in config.strategy["_target_"]:
        lines.append("privacy: this strategy adds noise, but no epsilon is accounted for; see docs/privacy.md")
    lines += plan.policy.remarks
    if plan.mesh.world.count > 1:
        lines.append(_processes(plan))
    elif config.trainer != "BasicTrainer":
        lines.append(f"trainer={config.trainer}: one process, so the model is not split")
    if config.accuracy_on == "test":
        lines.append(
            "warning: accuracy_on=test lets weights and decay read the test pairs, so the test curve is not untouched"
        )
    console.print("\n".join(lines), highlight=False, soft_wrap=True)
