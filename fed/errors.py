"""Why a client, or a whole run, ends early although the program has no defect."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What a disk says that is full, gone, or not to be written.
DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ENOENT, errno.ENOTDIR),
}


class Failed(Exception):
    """A client is left out of the round; raised by all processes that train it together."""


class CannotGoOn(Exception):
    """The run ends, with all that was done on the disk; the message says why."""


class TooFewClients(CannotGoOn):
    """Fewer clients than `min_fit_clients` succeeded in a round."""


class CannotWrite(CannotGoOn):
    """The disk does not take what a run has to keep."""


class Stopped(BaseException):
    """The run ends because it was asked to; no mistake, so no `except Exception` takes it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside, what the disk refuses is `CannotWrite`, whatever the library that writes makes of it."""
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
    """What the disk said, if that is behind an error: safetensors tells it as text, torch by process."""
    if isinstance(error, OSError) and error.errno in DISK:
        return str(error.strerror)
    text = str(error)
    if "I/O error" in text and "os error" in text:
        return text.rpartition("I/O error: ")[2].partition(" (os error")[0]
    for failure, *_ in getattr(error, "failures", {}).values():
        return _refusal(failure)
    return None
