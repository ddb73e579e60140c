"""All that a run needs to go on after it was cut off at any instant, in `checkpoints/` of its folder.

`round-<r>/` holds the state after r rounds, from every process; it appears under its name when it is complete and on
the disk. `round-<r>.begun/` holds the replies of the clients of round r that are done.
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
from fed.checkpoints.contexts import ClientFiles, asked, small
from fed.distributed.ranks import Mesh
from fed.distributed.shards import Shards
from fed.errors import CannotContinue, CannotWrite
from fed.files import sync, writing
from fed.model import weight_files
from fed.model.arrays import to_record, to_tensors

PARTIAL, BEGUN, BEST = ".partial", ".begun", "best"
SCORES = ("validation_accuracy", "test_accuracy")


class Stateful(Protocol):
    """Something with a state that lasts from round to round, PyTorch's way."""

    def state_dict(self) -> Any:
        """A tree as `fed.checkpoints.serialize` takes it."""

    def load_state_dict(self, state: Any) -> None:
        """Take up what `state_dict` gave."""


class Clients(Stateful, Protocol):
    """The clients of a federation."""

    @property
    def contexts(self) -> Sequence[Context]:
        """What each of them stores between rounds."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as this process read it."""

    server_round: int
    folder: Path
    tree: Mapping[str, Any]
    clients: Mapping[int, Mapping[str, ArrayRecord]]


class Checkpointer:
    """Keeps the state of one federation on the disk; all processes of the run use it in step.

    Args:
        folder: The federation's own, for checkpoints.
        mesh: The processes of the run.
        parts: How the model is split over them.
        run: What the run is, as plain values; a checkpoint of another one is refused.
        every: Rounds between checkpoints; 0: none.
        last: Checkpoints kept; the best one stays besides.
        num_rounds: After the last round there is a checkpoint whatever `every` says.
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
        self._small: dict[int, serialize.Packed] = {}  # what each client keeps besides arrays

    def newest(self, on_damage: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that is whole in all processes; `on_damage` is told of those that are not.

        Raises:
            CannotContinue: If it is of another run.
        """
        world = self._mesh.world
        for server_round in world.from_first(sorted(rounds(self.folder), reverse=True)):
            folder = self.folder / f"round-{server_round}"
            kept, problem = self._read(server_round, folder)
            # Of a run of fewer processes, this one may find no file of its own: that is no damage.
            self._check_run(folder, world.from_first(None if kept is None else kept.tree["run"]))
            problems = [found for found in world.gather(problem) if found is not None]
            if not problems:
                return kept
            self.files.forget()
            on_damage(f"checkpoint {folder} is damaged: {problems[0]}")
        return None

    def restore(
        self, kept: Checkpoint, initial: ArrayRecord, clients: Clients, stateful: Mapping[str, Stateful]
    ) -> ArrayRecord:
        """Give clients, and all that has a state besides, theirs back; the global weights, or this process's parts."""
        for node, records in kept.tree["contexts"].items():
            for key, record in {**records, **kept.clients.get(node, {})}.items():
                clients.contexts[node].state[key] = record
        clients.load_state_dict(kept.tree["clients"])
        self._scores = dict(kept.tree["scores"])
        for name, part in stateful.items():
            part.load_state_dict(kept.tree["state"][name])
        like, held = to_tensors(initial), weight_files.held(kept.folder)
        tensors = {name: torch.empty(like[name].shape, dtype=held[name][1]) for name in kept.tree["names"]}
        weight_files.load(self._parts.distributed(tensors), kept.folder, self._mesh)
        if self._mesh.world.is_first:
            self.clean(kept.server_round)
        return to_record(tensors)

    def is_due(self, server_round: int) -> bool:
        """Whether there is a checkpoint after this round."""
        return bool(self.every) and (server_round % self.every == 0 or server_round == self._num_rounds)

    def save(
        self,
        server_round: int,
        arrays: ArrayRecord,
        clients: Clients,
        stateful: Mapping[str, Stateful],
        metrics: Mapping[str, Any] | None,
    ) -> None:
        """Write the checkpoint of a round, then remove what it replaces; all processes call it.

        The best one is that of the highest `validation_accuracy` of `metrics`, or else `test_accuracy`.

        Raises:
            CannotWrite: If the disk refuses it; those before are as they were.
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
        holders = self._write_clients(folder, asked(clients.contexts))
        tree = {
            "run": self.run,
            "names": list(arrays),
            "sums": {str(path.relative_to(folder)): _sum(path) for path in weights},
            "contexts": dict(sorted(self._small.items())),
            "holders": holders,
            "clients": clients.state_dict(),
            "scores": self._scores,
            "state": {name: part.state_dict() for name, part in stateful.items()},
        }
        serialize.save(tree, folder / self._name)
        self.files.sync()
        for path in (*weights, folder / self._name, *{path.parent for path in weights}, folder):
            sync(path)

    def _write_clients(self, folder: Path, changed: Mapping[int, Context]) -> list[int]:
        """Have all clients' arrays in the folder, and at hand what else the changed ones keep; who has arrays."""
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
        """The checkpoint, or what is wrong with it."""
        try:
            tree = serialize.load(folder / self._name)
            for name, expected in tree["sums"].items():
                if not (folder / name).is_file() or _sum(folder / name) != expected:
                    return None, f"{name} is not as it was written: its checksum differs"
            clients = {node: self.files.read(self._client(folder, node), node) for node in tree["holders"]}
        except serialize.Damaged as error:
            return None, str(error)
        return Checkpoint(server_round, folder, tree, clients), None

    def _check_run(self, folder: Path, before: Mapping[str, Any] | None) -> None:
        for key, value in self.run.items():
            if before is not None and before.get(key) != value:
                raise CannotContinue(f"{folder} is of a run whose {key} was {before.get(key)}, here it is {value}")

    def clean(self, server_round: int) -> None:
        """Remove what a run that goes on after this round does not read."""
        found = sorted(rounds(self.folder))
        done = [number for number in found if number <= server_round]  # those after it are damaged
        scored = [number for number in done if number in self._scores]
        best = max(scored, key=lambda number: (self._scores[number], -number), default=None)
        kept = {*done[-self._last :], best}
        for number in found:
            if number not in kept:
                shutil.rmtree(self.folder / f"round-{number}")
        begun = self.folder / f"round-{server_round + 1}{BEGUN}"
        for path in (*self.folder.glob(f"*{PARTIAL}"), *self.folder.glob(f"*{BEGUN}")):
            if path != begun:
                shutil.rmtree(path, ignore_errors=True)
        if best is not None:
            link = self.folder / f"{BEST}{PARTIAL}"
            link.unlink(missing_ok=True)
            link.symlink_to(f"round-{best}")
            link.replace(self.folder / BEST)

    @property
    def _name(self) -> str:
        return f"process-{self._mesh.world.index}.safetensors"

    def _client(self, folder: Path, node: int) -> Path:
        return folder / f"client-{node}-{self._mesh.world.index}.safetensors"


def rounds(folder: Path) -> Iterator[int]:
    """After which rounds there are checkpoints, whole or damaged."""
    for path in folder.glob("round-*"):
        if path.name.removeprefix("round-").isdigit():
            yield int(path.name.removeprefix("round-"))


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
