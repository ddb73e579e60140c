"""`Checkpointer`: checkpoints from which a run resumes, whenever it was killed, in `checkpoints/` of its folder.

`round-<r>/` holds the state of every process after r rounds; it appears under this name when it is complete and on the
disk. `round-<r>.begun/` holds the replies of the clients that have finished round r: see fed/checkpoints/journal.py.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from flwr.app import ArrayRecord, Context

from fed.checkpoints import serialize
from fed.checkpoints.contexts import ClientFiles, accessed, small
from fed.distributed.ranks import Mesh
from fed.distributed.shards import Shards
from fed.errors import CannotContinue, CannotWrite
from fed.files import sync, writing
from fed.model import weight_files
from fed.model.arrays import to_record, to_tensors

PARTIAL, BEGUN, BEST = ".partial", ".begun", "best"
SCORES = ("validation_accuracy", "test_accuracy")


class Stateful(Protocol):
    """An object whose state lasts from round to round; its methods are named as PyTorch names them."""

    def state_dict(self) -> Any:
        """Return the state as a value that `fed.checkpoints.serialize.save` accepts."""

    def load_state_dict(self, state: Any) -> None:
        """Restore the state that `state_dict` returned."""


class Clients(Stateful, Protocol):
    """The clients of a federation."""

    @property
    def contexts(self) -> Sequence[Context]:
        """Each client's context, which lasts from round to round."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as one process reads it."""

    server_round: int
    folder: Path
    content: Mapping[str, Any]
    clients: Mapping[int, Mapping[str, ArrayRecord]]


class Checkpointer:
    """The writer and reader of a federation's checkpoints; all processes of the run call it in step.

    Args:
        folder: The folder of this federation's checkpoints.
        mesh: The processes of the run.
        parts: How the model is split over them.
        run: Plain values that identify the run; a checkpoint of another run is refused.
        every: Rounds between checkpoints; 0 writes none.
        last: The number of newest checkpoints that stay; the best one stays too.
        num_rounds: The last round, after which there is a checkpoint whatever `every` is.
    """

    def __init__(
        self,
        folder: Path,
        mesh: Mesh,
        parts: Shards,
        run: Mapping[str, Any],
        *,
        every: int,
        last: int,
        num_rounds: int,
    ) -> None:
        self.folder, self.files = folder, ClientFiles()
        self._mesh, self._parts, self.run = mesh, parts, dict(run)
        self.every, self._last, self._num_rounds = every, last, num_rounds
        self._scores: dict[int, float] = {}  # of each round that was evaluated
        self._small: dict[int, serialize.Packed] = {}  # each client's records without arrays

    def newest(self, on_damage: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest checkpoint that is complete in all processes; call `on_damage` for each that is not.

        Raises:
            CannotContinue: If it belongs to another run.
        """
        world = self._mesh.world
        for server_round in world.from_first(sorted(rounds(self.folder), reverse=True)):
            folder = self.folder / f"round-{server_round}"
            found, problem = self._read(server_round, folder)
            # A run of fewer processes left no file for this one: that is no damage.
            self._check_run(folder, world.from_first(None if found is None else found.content["run"]))
            problem = world.any_of(problem)
            if problem is None:
                return found
            self.files.forget()
            on_damage(f"checkpoint {folder} is damaged: {problem}")
        return None

    def restore(
        self, checkpoint: Checkpoint, initial: ArrayRecord, clients: Clients, stateful: Mapping[str, Stateful]
    ) -> ArrayRecord:
        """Restore the clients and all `stateful` objects. Return the global weights, or this process's parts."""
        for node, records in checkpoint.content["contexts"].items():
            for key, record in {**records, **checkpoint.clients.get(node, {})}.items():
                clients.contexts[node].state[key] = record
        clients.load_state_dict(checkpoint.content["clients"])
        self._scores = dict(checkpoint.content["scores"])
        for name, part in stateful.items():
            part.load_state_dict(checkpoint.content["state"][name])
        like, held = to_tensors(initial), weight_files.held(checkpoint.folder)
        tensors = {name: torch.empty(like[name].shape, dtype=held[name][1]) for name in checkpoint.content["names"]}
        weight_files.load(self._parts.distributed(tensors), checkpoint.folder, self._mesh)
        if self._mesh.world.is_first:
            self.clean(checkpoint.server_round)
        return to_record(tensors)

    def is_due(self, server_round: int) -> bool:
        """Return True if a checkpoint is due after this round."""
        return bool(self.every) and (server_round % self.every == 0 or server_round == self._num_rounds)

    def save(
        self,
        server_round: int,
        arrays: ArrayRecord,
        clients: Clients,
        stateful: Mapping[str, Stateful],
        metrics: Mapping[str, Any] | None,
    ) -> None:
        """Write the checkpoint of a round, then remove those it replaces; all processes call it.

        The best checkpoint has the highest `validation_accuracy` in `metrics`, or `test_accuracy` without validation.

        Raises:
            CannotWrite: If the disk refuses it; earlier checkpoints are unchanged.
        """
        world = self._mesh.world
        folder = self.folder / f"round-{server_round}"
        partial = folder.with_name(folder.name + PARTIAL)
        score = next((metrics[key] for key in SCORES if key in metrics), None) if metrics else None
        if score is not None:
            self._scores[server_round] = float(score)
        try:
            with writing(folder):
                if world.is_first:
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir(parents=True)
                world.gather(None)  # the folder is there
                self._write(partial, arrays, clients, stateful)
                world.gather(None)  # every part is there
                if world.is_first:
                    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
                    partial.rename(folder)
                    sync(self.folder)
        except CannotWrite:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        world.gather(None)  # it is there under its name
        self.files.moved(partial, folder)
        if world.is_first:
            self.clean(server_round)

    def _write(self, folder: Path, arrays: ArrayRecord, clients: Clients, stateful: Mapping[str, Stateful]) -> None:
        weights: list[Path] = []
        if self._mesh.groups.is_first:  # the other groups hold the same
            weight_files.write(self._parts.distributed(to_tensors(arrays)), folder, self._mesh)
            own = self._mesh.own
            own.gather(None)  # every process has written its file
            weights = weight_files.files(folder)[own.index :: own.count]
        holders = self._write_clients(folder, accessed(clients.contexts))
        content = {
            "run": self.run,
            "names": list(arrays),
            "sums": {str(path.relative_to(folder)): _sum(path) for path in weights},
            "contexts": dict(sorted(self._small.items())),
            "holders": holders,
            "clients": clients.state_dict(),
            "scores": self._scores,
            "state": {name: part.state_dict() for name, part in stateful.items()},
        }
        serialize.save(content, folder / self._name)
        self.files.sync()
        for path in (*weights, folder / self._name, *{path.parent for path in weights}, folder):
            sync(path)

    def _write_clients(self, folder: Path, changed: Mapping[int, Context]) -> list[int]:
        """Write or link all clients' arrays into the folder, and pack the changed clients' records.

        Return the clients that have arrays.
        """
        for node in self.files.nodes - changed.keys():
            self.files.link(self._client(folder, node), node)
        for node, context in changed.items():
            self.files.write(self._client(folder, node), node, context)
            if records := small(context):
                self._small[node] = serialize.packed(records)
            else:
                self._small.pop(node, None)
        return sorted(self.files.nodes)

    def _read(self, server_round: int, folder: Path) -> tuple[Checkpoint | None, str | None]:
        """Return the checkpoint and None, or None and its damage."""
        try:
            content = serialize.load(folder / self._name)
            for name, expected in content["sums"].items():
                if not (folder / name).is_file() or _sum(folder / name) != expected:
                    return None, f"{name} is not as it was written: its checksum differs"
            clients = {node: self.files.read(self._client(folder, node), node) for node in content["holders"]}
        except serialize.Damaged as error:
            return None, str(error)
        return Checkpoint(server_round, folder, content, clients), None

    def _check_run(self, folder: Path, before: Mapping[str, Any] | None) -> None:
        for key, value in self.run.items():
            if before is not None and before.get(key) != value:
                raise CannotContinue(f"{folder} belongs to a run with another {key}: {before.get(key)}, now {value}")

    def clean(self, server_round: int) -> None:
        """Remove every checkpoint and every reply that a run resumed after this round does not need."""
        found = sorted(rounds(self.folder))
        done = [number for number in found if number <= server_round]  # those after it are damaged
        scored = [number for number in done if number in self._scores]
        best = max(scored, key=lambda number: (self._scores[number], -number), default=None)
        needed = {*done[-self._last :], best}
        for number in found:
            if number not in needed:
                shutil.rmtree(self.folder / f"round-{number}")
        begun = self.folder / f"round-{server_round + 1}{BEGUN}"
        for path in (*self.folder.glob(f"*{PARTIAL}"), *self.folder.glob(f"*{BEGUN}")):
            if path != begun:
                shutil.rmtree(path, ignore_errors=True)
        if best is not None:
            link, place = self.folder / f"{BEST}{PARTIAL}", self.folder / BEST
            if place.is_dir() and not place.is_symlink():  # a folder that was copied with what its links lead to
                shutil.rmtree(place)
            link.unlink(missing_ok=True)
            link.symlink_to(f"round-{best}")
            link.replace(place)

    @property
    def _name(self) -> str:
        return f"process-{self._mesh.world.index}.safetensors"

    def _client(self, folder: Path, node: int) -> Path:
        return folder / f"client-{node}-{self._mesh.world.index}.safetensors"


def rounds(folder: Path) -> Iterator[int]:
    """Yield the rounds after which there are checkpoints, complete or damaged, in no order."""
    for path in folder.glob("round-*"):
        if path.name.removeprefix("round-").isdigit():
            yield int(path.name.removeprefix("round-"))


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
