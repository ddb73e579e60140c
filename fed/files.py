"""Files that are never left half written, and the error that a full or missing disk raises."""

import errno
import hashlib
import io
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from fed.errors import CannotWrite

# Errors of a disk that is full, gone, or not to be written.
DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EEXIST),  # the last: a file stands where a folder should
}

DIGEST = hashlib.sha256().digest_size
PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}", re.ASCII)


def inside(folder: Path, *names: str) -> Path:
    """Return `folder/name/name/...`; the names may come from anybody, the folder is this program's own.

    Args:
        folder: The folder that the path must not leave.
        *names: Plain names: 1 to 128 letters, digits and `_ . -` of ASCII, not beginning with a point.

    Raises:
        ValueError: If a name is not plain, or a symbolic link leads out of the folder.
    """
    for name in names:
        if not PLAIN.fullmatch(name):
            shown = repr(name if len(name) <= 40 else f"{name[:40]}...")
            raise ValueError(f"{shown} is not a plain name of letters, digits, _, . and -")
    path = folder.joinpath(*names)
    if leads_out(path, folder):
        raise ValueError(f"{path} leads out of {folder}")
    return path


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether symbolic links make the path one that is not in the folder."""
    return not path.resolve().is_relative_to(folder.resolve())


def plain_name(text: str) -> str:
    """Return a plain name that looks like `text`."""
    return re.sub(r"[^A-Za-z0-9_.-]|^\.", "-", text, flags=re.ASCII)[:128] or "-"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise `CannotWrite` in place of any error inside by which the disk refuses `path`.

    Every library that writes reports such an error in its own way.
    """
    try:
        yield
    except CannotWrite:
        raise
    except BaseException as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise CannotWrite(f"cannot write {path}: {reason}") from error


def _refusal(error: BaseException | None) -> str | None:
    """Return the disk's reason if one is behind the error; safetensors reports it as text, torch by process."""
    if isinstance(error, OSError) and error.errno in DISK:
        return str(error.strerror)
    text = str(error)
    if "I/O error" in text and "os error" in text:
        return text.rpartition("I/O error: ")[2].partition(" (os error")[0]
    for failure, *_ in getattr(error, "failures", {}).values():
        return _refusal(failure)
    return None


def make_private(folder: Path) -> None:
    """Create a folder that only its owner can read, if there is none; one that is there stays as it is.

    Raises:
        OSError: If it cannot be created.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def write_whole(file: Path, content: bytes, mode: int = 0o666) -> None:
    """Write a file by way of a partial one, so that a reader never sees half of it; `mode` as for `os.open`.

    Raises:
        OSError: If it cannot be written.
    """
    partial = file.with_suffix(f".{os.getpid()}.partial")
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb", opener=lambda path, flags: os.open(path, flags, mode)) as opened:
        opened.write(content)
    partial.replace(file)


def write_array(entry: Path, values: np.ndarray) -> None:
    """Write an array to a cache, with its SHA-256 behind it; a reader never sees half of it, and others see nothing.

    Raises:
        CannotWrite: If the disk refuses the file.
    """
    written = io.BytesIO()
    np.lib.format.write_array(written, values, allow_pickle=False)
    content = written.getvalue()
    with writing(entry):
        make_private(entry.parent)
        write_whole(entry, content + hashlib.sha256(content).digest(), mode=0o600)


def read_array(entry: Path) -> np.ndarray | None:
    """Read an array from a cache; None if it is missing or damaged, or if another user owns it or may write it."""
    try:
        with entry.open("rb") as file:
            is_own = _is_own(os.fstat(file.fileno()))
            content, digest = (whole := file.read())[:-DIGEST], whole[-DIGEST:]
        if not is_own or hashlib.sha256(content).digest() != digest:
            return None
        return np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception:  # no entry, or whatever a damaged or foreign file makes numpy raise
        return None


def is_own(path: Path) -> bool:
    """Return whether the path is a file, no link, that this user owns and nobody else may write."""
    found = path.lstat()
    return stat.S_ISREG(found.st_mode) and _is_own(found)


def _is_own(found: os.stat_result) -> bool:
    return found.st_uid == os.geteuid() and not found.st_mode & 0o022


def keep_newest(folder: Path, most: int) -> None:
    """Remove all but the newest `most` files of a cache; another process may do so too."""
    found = []
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime_ns, path))
    for _, path in sorted(found)[:-most]:
        path.unlink(missing_ok=True)


def truncate(path: Path, size: int) -> None:
    """Truncate a file to `size` bytes; a shorter one stays as it is."""
    if path.stat().st_size > size:
        os.truncate(path, size)


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def free_space(path: Path) -> int:
    """Return the free bytes on the disk where the path is or will be."""
    while not path.exists():
        path = path.absolute().parent
    return shutil.disk_usage(path).free
