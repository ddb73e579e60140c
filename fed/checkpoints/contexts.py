"""The contexts of clients, and the files of the arrays that clients store in them."""

import os
import shutil
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from fed.checkpoints import serialize
from fed.config.flower import PARTITION_ID
from fed.files import sync
from fed.model.arrays import copied, same_arrays


class ClientFiles:
    """The files of the arrays that clients store in their contexts; an array that stays the same is written once.

    A written array lives on the disk, so a client that is idle takes no memory.
    """

    def __init__(self) -> None:
        self._files: dict[int, tuple[Mapping[str, ArrayRecord], Path]] = {}  # the records are copies
        self._new: set[int] = set()  # written since `sync`

    def write(self, path: Path, node: int, context: Context) -> bool:
        """Write the client's arrays to `path`. Return False if it has none."""
        arrays = {key: record for key, record in context.state.array_records.items() if len(record)}
        if not arrays:
            self._files.pop(node, None)  # its file goes with the checkpoint that has it
            return False
        known, _ = self._files.get(node, ({}, path))
        if known.keys() == arrays.keys() and all(same_arrays(known[key], arrays[key]) for key in arrays):
            self.link(path, node)
            return True
        serialize.save(arrays, path)
        for key, record in serialize.mapped(path).items():
            context.state[key] = record
        self._remember(node, context.state.array_records, path)
        return True

    def read(self, path: Path, node: int) -> Mapping[str, ArrayRecord]:
        """Read the arrays that `write` has written.

        Raises:
            Damaged: If the file is missing or incomplete.
        """
        arrays: Mapping[str, ArrayRecord] = serialize.load(path)
        self._remember(node, arrays, path)
        return arrays

    @property
    def nodes(self) -> Set[int]:
        """The clients whose arrays are in files."""
        return self._files.keys()

    def link(self, path: Path, node: int) -> None:
        """Link `path` to the file of a client whose arrays did not change."""
        arrays, there = self._files[node]
        _link(there, path)
        self._files[node] = arrays, path

    def sync(self) -> None:
        """Force the files written since the last call to the disk."""
        for node in self._new & self._files.keys():
            sync(self._files[node][1])
        self._new.clear()

    def forget(self) -> None:
        """Forget all files."""
        self._files.clear()
        self._new.clear()

    def moved(self, old: Path, new: Path) -> None:
        """Note that a folder was renamed."""
        for node, (arrays, path) in self._files.items():
            if path.parent == old:
                self._files[node] = arrays, new / path.name

    def _remember(self, node: int, arrays: Mapping[str, ArrayRecord], path: Path) -> None:
        self._files[node] = {key: copied(record) for key, record in arrays.items() if len(record)}, path
        self._new.add(node)


def small(context: Context) -> dict[str, ArrayRecord | ConfigRecord | MetricRecord]:
    """Return the client's records with empty ones in place of those that hold arrays."""
    return {key: ArrayRecord() if isinstance(record, ArrayRecord) else record for key, record in context.state.items()}


def _link(there: Path, path: Path) -> None:
    """Link `path` to the file, or copy it where the file system has no hard links."""
    if there == path:
        return
    path.unlink(missing_ok=True)
    try:
        os.link(there, path)
    except OSError:
        shutil.copyfile(there, path)


class Contexts(Sequence[Context]):
    """The clients' contexts, each created on first access; node k is the k-th of `client_ids`."""

    def __init__(self, client_ids: Sequence[int]) -> None:
        self._client_ids = client_ids
        self._made: dict[int, Context] = {}
        self._accessed: set[int] = set()

    def __len__(self) -> int:
        return len(self._client_ids)

    def __getitem__(self, node: int) -> Context:  # type: ignore[override]  # there are no slices of clients
        if node not in self._made:
            config = {PARTITION_ID: self._client_ids[node], "num-partitions": len(self)}
            self._made[node] = Context(0, node, config, RecordDict(), {})  # type: ignore[arg-type]
        self._accessed.add(node)
        return self._made[node]

    def accessed(self) -> dict[int, Context]:
        """Return the contexts accessed since the last call, by node; no other can have changed."""
        accessed, self._accessed = sorted(self._accessed), set()
        return {node: self._made[node] for node in accessed}


def accessed(contexts: Sequence[Context]) -> dict[int, Context]:
    """Return the contexts that may have changed since the last call, by node."""
    return contexts.accessed() if isinstance(contexts, Contexts) else dict(enumerate(contexts))
