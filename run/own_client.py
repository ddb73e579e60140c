"""Flower's client process with the client app of this checkout, whatever code the run's bundle holds.

It uses private names of Flower, as `fed.grids.local` does.
"""

import io
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.supernode.cli.flwr_clientapp import flwr_clientapp
from flwr.supernode.runtime import run_clientapp

from fed.foreign import one_line

ROOT = Path(__file__).resolve().parent.parent
WRITTEN_BY_FLOWER = ("pyproject.toml", ".info/CONTENT")


def main() -> None:
    """Answer one message, as Flower's `flwr-clientapp` does; nothing of the bundle is written or imported."""
    for name, function in (("install_from_fab", compare), ("get_load_client_app_fn", own_app)):
        if not hasattr(run_clientapp, name):  # another version of Flower would run the bundle's code
            sys.exit(f"error: this version of Flower has no {name}; install the one in constraints.txt")
        setattr(run_clientapp, name, function)
    flwr_clientapp()


def own_app(**_: Any) -> Callable[..., ClientApp]:
    """Return what Flower asks for the client app of a bundle; it gets that of this checkout."""

    def load(*_: str) -> ClientApp:
        from run.client_app import app  # seconds, in which Flower must already hear of this process

        return app

    return load


def compare(bundle: bytes, **_: Any) -> None:
    """Tell the node's owner if the run's code is other than this checkout's, in place of installing it."""
    try:
        with zipfile.ZipFile(io.BytesIO(bundle)) as files:
            other = sorted(_others(files))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError) as error:
        other = [f"the bundle itself, which cannot be read: {error}"]
    if other:
        text = f"{len(other)} files of the run's code differ from this node's, which runs its own (first: {other[0]})"
        print(one_line(text), file=sys.stderr, flush=True)


def _others(files: zipfile.ZipFile) -> Iterator[str]:
    """Yield the names of files that this checkout lacks, or has with other bytes."""
    for entry in files.infolist():
        own = ROOT / entry.filename
        if entry.filename in WRITTEN_BY_FLOWER:
            continue
        if not own.is_file() or own.stat().st_size != entry.file_size or own.read_bytes() != files.read(entry):
            yield entry.filename
