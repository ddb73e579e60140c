"""What clients store in their contexts, brought to the disk and taken from there again."""

import os
import shutil
from collections.abc import Mapping, Set
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord

from fed.checkpoints import serialize
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
            serialize.sync(self._files[node][1])
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
