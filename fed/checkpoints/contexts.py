"""What clients store in their contexts, brought to the disk and taken from there again."""

import os
import shutil
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord, RecordDict

from fed.checkpoints import serialize
from fed.files import sync
from fed.model.arrays import copied


class ClientFiles:
    """Arrays that clients store in their contexts, each written once for as long as it stays the same.

    Once written they live on the disk: the memory of a client that is not asked is free for others.
    """

    def __init__(self) -> None:
        self._files: dict[int, tuple[Mapping[str, ArrayRecord], Path]] = {}  # with records of its own
        self._new: set[int] = set()  # written since `sync`

    def write(self, path: Path, node: int, context: Context) -> bool:
        """Have the client's arrays in a file; whether it has any."""
        arrays = {key: record for key, record in context.state.array_records.items() if len(record)}
        if not arrays:
            self._files.pop(node, None)  # its file goes with the checkpoint that has it
            return False
        known, _ = self._files.get(node, ({}, path))
        if known.keys() == arrays.keys() and all(_same(known[key], arrays[key]) for key in arrays):
            self.link(path, node)
            return True
        serialize.save(arrays, path)
        for key, record in serialize.mapped(path).items():
            context.state[key] = record
        self._remember(node, context.state.array_records, path)
        return True

    def read(self, path: Path, node: int) -> Mapping[str, ArrayRecord]:
        """What `write` had written.

        Raises:
            Damaged: If it is not there or not whole.
        """
        arrays: Mapping[str, ArrayRecord] = serialize.load(path)
        self._remember(node, arrays, path)
        return arrays

    @property
    def nodes(self) -> Set[int]:
        """Whose arrays are in files."""
        return self._files.keys()

    def link(self, path: Path, node: int) -> None:
        """Have the arrays of a client that did not change in this file too."""
        arrays, there = self._files[node]
        _link(there, path)
        self._files[node] = arrays, path

    def sync(self) -> None:
        """Force what was written to the disk."""
        for node in self._new & self._files.keys():
            sync(self._files[node][1])
        self._new.clear()

    def forget(self) -> None:
        """Know of no file."""
        self._files.clear()
        self._new.clear()

    def moved(self, old: Path, new: Path) -> None:
        """A folder has another name now."""
        for node, (arrays, path) in self._files.items():
            if path.parent == old:
                self._files[node] = arrays, new / path.name

    def _remember(self, node: int, arrays: Mapping[str, ArrayRecord], path: Path) -> None:
        self._files[node] = {key: copied(record) for key, record in arrays.items() if len(record)}, path
        self._new.add(node)


def small(context: Context) -> dict[str, ArrayRecord | ConfigRecord | MetricRecord]:
    """What a client keeps, without its arrays."""
    return {key: ArrayRecord() if isinstance(record, ArrayRecord) else record for key, record in context.state.items()}


def _same(known: ArrayRecord, record: ArrayRecord) -> bool:
    """Whether these are the very same arrays: a client may put others into a record that stays."""
    return known.keys() == record.keys() and all(known[name] is record[name] for name in record)


def _link(there: Path, path: Path) -> None:
    """The file under another name too, or a copy where the file system has no such links."""
    if there == path:
        return
    path.unlink(missing_ok=True)
    try:
        os.link(there, path)
    except OSError:
        shutil.copyfile(there, path)


class Contexts(Sequence[Context]):
    """One context per client, made when it is first asked for; node k is the k-th of `client_ids`."""

    def __init__(self, client_ids: Sequence[int]) -> None:
        self._client_ids = client_ids
        self._made: dict[int, Context] = {}
        self._asked: set[int] = set()

    def __len__(self) -> int:
        return len(self._client_ids)

    def __getitem__(self, node: int) -> Context:  # type: ignore[override]  # there are no slices of clients
        if node not in self._made:
            config = {"partition-id": self._client_ids[node], "num-partitions": len(self)}
            self._made[node] = Context(0, node, config, RecordDict(), {})  # type: ignore[arg-type]
        self._asked.add(node)
        return self._made[node]

    def asked(self) -> dict[int, Context]:
        """Those that were asked for since this was called last, by node: no other can have changed."""
        asked, self._asked = sorted(self._asked), set()
        return {node: self._made[node] for node in asked}


def asked(contexts: Sequence[Context]) -> dict[int, Context]:
    """The contexts that may have changed since this was called last, by node."""
    return contexts.asked() if isinstance(contexts, Contexts) else dict(enumerate(contexts))
