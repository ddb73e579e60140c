"""One experiment: carry out a plan, and leave the results in a folder."""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from rich.console import Console

from fed.checkpoints.checkpointer import Checkpoint, Checkpointer
from fed.config.schema import Config, flat
from fed.cpu.runtime import peak_memory
from fed.files import writing
from fed.model.arrays import load_arrays, model_tensors, snapshot
from fed.model.policy import save_policy
from fed.model.references import weights_hash
from fed.reports.pictures import pictures
from fed.tracking import run_folder, steps
from fed.tracking.log import Log, Relay
from fed.tracking.run_files import CURVES, SUMMARY, TENSORBOARD
from fed.tracking.tensorboard import METHOD
from fed.tracking.tracker import Tracker
from run import resume
from run.federation import Federation, checkpointer_of
from run.folder import places_of
from run.header import describe
from run.local import train_here
from run.plan import Plan
from run.references import ReferencedPairs, columns_of
from run.remote import RemoteClients, train_remotely


def run(plan: Plan, folder: Path, clients: RemoteClients | None = None) -> None:
    """Train and evaluate, and write metrics, curves and the final model into `folder`.

    Args:
        plan: What is to be done.
        folder: The folder of the run.
        clients: The clients if they are elsewhere; None: they run in this program.

    Raises:
        CannotContinue: If the run must end; it can be resumed.
        Stopped: If a signal asked the run to stop; it can be resumed.
    """
    world = plan.machine.mesh.world
    # Names of folders, data sets and fields may look like rich's markup.
    console = Console(quiet=not world.is_first, soft_wrap=True, highlight=False, markup=False)
    with _log(plan, folder, console) as log:
        describe(plan, console)
        if plan.judge is None:
            plan.pairs.rows.split.forget_texts()  # from here on the pairs are token ids
        for federation in _federations(plan, folder, log, console, are_here=clients is None):
            final = train_here(federation) if clients is None else train_remotely(federation, clients)
            _save(plan, final, federation.place.policy)
        if plan.config.mode == "local":
            log.everyone()
        memory = world.gather(_memory(plan.policy.device))
        with writing(folder / SUMMARY):
            summary = log.summary(**memory[0], **({"processes": memory} if len(memory) > 1 else {}))
    if world.is_first:
        with writing(folder / CURVES):
            picture = pictures(folder)
        seconds, board = summary["wall_seconds"], folder / TENSORBOARD
        pairs = f"{summary['pairs']} pairs" if summary["pairs"] else "done"  # private clients do not tell their pairs
        console.print(f"{pairs} in {seconds:.0f} s; results in {folder}")
        if picture is not None:
            console.print(f"curves: {picture}  (or: tensorboard --logdir {board})")


def hyperparameters(config: Config) -> dict[str, object]:
    """Return all settings that are set, by dotted name; lists as text; under METHOD strategy and mode."""
    found: dict[str, object] = {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in flat(asdict(config))
        if value is not None
    }
    strategy = str(found["strategy._target_"]).rpartition(".")[2]
    return {**found, METHOD: f"{strategy}, {config.mode}" if config.mode == "federated" else config.mode}


def _log(plan: Plan, folder: Path, console: Console) -> Log:
    """Return the tracker in the first process; in others a relay, which keeps reports if it speaks for a group."""
    mesh = plan.machine.mesh
    if not mesh.world.is_first:
        return Relay(speaks=mesh.groups.index > 0 and mesh.own.is_first)
    return Tracker(
        folder,
        tensorboard=plan.config.tensorboard.enabled,
        num_rounds=plan.config.comm_round,
        clients_per_round=plan.clients_per_round,
        console=console,
    )


def _federations(plan: Plan, folder: Path, log: Log, console: Console, *, are_here: bool) -> Iterator[Federation]:
    """Yield the run's federations that are not complete yet, each when the one before it is."""
    initial = snapshot(model_tensors(plan.policy.model))
    model_hash = weights_hash(plan.policy)
    pairs = ReferencedPairs(plan.pairs, columns_of(plan, initial, model_hash, log))
    if not plan.policy.scores:  # which have no reference
        steps.say(f"reading reference log-probs from {plan.config.cache_dir}, or computing them")
    with log.phase("reference"):
        # Clients elsewhere fill in their own pairs; those that a run may never meet get theirs at the first visit.
        pairs.fill_before_training(log.reference, clients=are_here and plan.meets_all)
    places = places_of(plan, folder)
    checkpointers = [checkpointer_of(plan, place, model_hash) for place in places]
    first, checkpoint = 0, None
    if plan.config.resume:
        for change in resume.differences(folder, run_folder.surroundings(plan.policy.device)):
            console.print(f"warning: the run began with {change}: the last bits may differ")
        first, checkpoint = _resume_point(checkpointers, log, console, are_here=are_here)
    if checkpoint is None:
        log.settings(hyperparameters(plan.config))
    if not (checkpoint or plan.config.resume):
        steps.say("evaluating the model before training")
    for place, checkpointer in list(zip(places, checkpointers, strict=True))[first:]:
        yield Federation(plan, pairs, log, initial, place, checkpointer, checkpoint, console)
        checkpoint = None


def _resume_point(
    checkpointers: Sequence[Checkpointer], log: Log, console: Console, *, are_here: bool
) -> tuple[int, Checkpoint | None]:
    """Return the federation that was cut off, by number, and its newest checkpoint; those before it are complete."""

    def on_damage(message: str) -> None:
        console.print(f"{message}; using the one before it")

    for number, checkpointer in reversed(list(enumerate(checkpointers))):
        checkpoint = checkpointer.newest(on_damage)
        if checkpoint is not None:
            console.print(f"resuming after round {checkpoint.server_round}, from {checkpoint.folder}")
            return number, checkpoint
    log.start_over()
    within_round = "; clients that are done with the first round do not train again" if are_here else ""
    console.print(f"no round is complete yet{within_round}")
    return 0, None


def _save(plan: Plan, arrays: ArrayRecord, directory: Path) -> None:
    load_arrays(plan.policy.model, arrays)
    if plan.config.debug:
        return
    writes = plan.machine.mesh.world.is_first
    with writing(directory):
        if writes:
            shutil.rmtree(directory, ignore_errors=True)  # of a run that was cut off here
        save_policy(plan.policy, directory, write=writes)


def _memory(device: torch.device) -> dict[str, float]:
    """Return the peak memory of this process in units of 1e9 bytes."""
    memory = {"peak_memory_gb": peak_memory() / 1e9}
    if device.type == "cuda":
        memory["peak_device_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return memory
