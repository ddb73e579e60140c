"""One experiment: run a plan, leave the results in a folder."""

import functools
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from rich.console import Console

from clients.app import ClientPairs
from fed.checkpoints.checkpointer import Checkpoint, Checkpointer
from fed.config.schema import Config, flat
from fed.cpu.runtime import peak_memory
from fed.distributed.ranks import Mesh
from fed.distributed.shards import Shards
from fed.files import writing
from fed.model.arrays import load_arrays, model_tensors, snapshot
from fed.model.policy import save_policy
from fed.model.references import weights_hash
from fed.reports.curves import curves
from fed.tracking import run_folder
from fed.tracking.log import Log, Relay
from fed.tracking.run_files import CURVES, SUMMARY, TENSORBOARD
from fed.tracking.tracker import Tracker
from run import resume
from run.federation import MODEL_HASH, Place, RemoteClients, federate, federate_remotely
from run.folder import places_of
from run.header import describe
from run.plan import Plan, references


def run(plan: Plan, folder: Path, clients: RemoteClients | None = None) -> None:
    """Train, evaluate, and write metrics, curves and the final model into `folder`; None: the clients are here."""
    config, writes = plan.config, plan.mesh.world.is_first
    console = Console(quiet=not writes)
    with _tracker(plan, folder, console) if writes else _relay(plan.mesh) as tracker:
        describe(plan, console)
        initial = snapshot(model_tensors(plan.policy.model))
        model = weights_hash(plan.policy)
        with tracker.phase("reference"):
            plan = _with_references(plan, model, tracker.reference)
        places = places_of(plan, folder)
        checkpointers = [_checkpointer(plan, place, model) for place in places]
        first, checkpoint = 0, None
        if config.resume:
            for change in resume.differences(folder, run_folder.surroundings(plan.policy.device)):
                console.print(f"warning: was {change}: the last bits may differ", soft_wrap=True, highlight=False)
            first, checkpoint = _resume(checkpointers, tracker, console, clients is None)
        if checkpoint is None:
            tracker.settings(hyperparameters(config))
        for place, checkpointer in list(zip(places, checkpointers, strict=True))[first:]:
            if clients is None:
                final = federate(plan, tracker, initial, place, checkpointer, checkpoint, console)
            else:
                final = federate_remotely(plan, clients, tracker, initial, place, checkpointer, checkpoint, console)
            checkpoint = None
            _save(plan, final, place.policy)
        if config.mode == "local":
            tracker.everyone()
        memory = plan.mesh.world.gather(_memory(plan.policy.device))
        with writing(folder / SUMMARY):
            summary = tracker.summary(**memory[0], **({"processes": memory} if len(memory) > 1 else {}))
    if not writes:
        return
    with writing(folder / CURVES):
        picture = curves(folder)
    console.print(f"{summary['pairs']} pairs in {summary['wall_seconds']:.0f} s; results in {folder}", soft_wrap=True)
    console.print(f"curves: {picture}  (or: tensorboard --logdir {folder / TENSORBOARD})", soft_wrap=True)


def _checkpointer(plan: Plan, place: Place, model: str) -> Checkpointer:
    config, mesh = plan.config, plan.mesh
    return Checkpointer(
        place.checkpoints,
        mesh,
        Shards(plan.policy.model),
        {
            "number of processes": mesh.world.count,
            "clients_in_parallel": mesh.groups.count,
            MODEL_HASH: model,
        },
        every=0 if config.debug else config.checkpoint_every,
        last=config.checkpoint_keep,
        num_rounds=config.comm_round,
    )


def _resume(
    checkpointers: Sequence[Checkpointer], tracker: Log, console: Console, is_local: bool
) -> tuple[int, Checkpoint | None]:
    """The federation of a resumed run that was cut off, those before it being done, and its newest checkpoint."""

    def on_damage(message: str) -> None:
        console.print(f"{message}; the one before is used", soft_wrap=True, highlight=False)

    for number, checkpointer in reversed(list(enumerate(checkpointers))):
        checkpoint = checkpointer.newest(on_damage)
        if checkpoint is not None:
            console.print(f"going on after round {checkpoint.server_round}, from {checkpoint.folder}", soft_wrap=True)
            return number, checkpoint
    tracker.start_over()
    of_the_first = "; of the first one, clients that are done are checkpoint" if is_local else ""
    console.print(f"no round is complete yet{of_the_first}", soft_wrap=True)
    return 0, None


def _relay(mesh: Mesh) -> Relay:
    """Return the log of a process that is not the first; one process of each group speaks for its clients."""
    return Relay(speaks=mesh.groups.index > 0 and mesh.own.is_first)


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
