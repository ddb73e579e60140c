"""Files of text, packed or not, opened as bytes; errors name the file, and what swells as no text does is refused."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from fed.data.formats import GZIP, LONGEST, ZSTD, check_format

LARGE = 2**26  # bytes
MOST_UNPACKED = (
    200  # times the size of a packed file, after the first 64 MiB; gzip itself reaches 1,032 (zlib.net, FAQ)
)
BLOCK = 2**20  # bytes


def packing_of(path: Path) -> str:
    """Return the ending of a name that tells its packing; "" if none does."""
    return next((packing for packing in (".gz", ".zst") if path.name.endswith(packing)), "")


class _Unpacked(io.RawIOBase):
    """The content of a packed file, refused if it swells as no text does, and with errors that name the file."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        self._path, self._stream, self._left = path, stream, most_unpacked(path)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _named(self._path):
            data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(swells(self._path))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        super().close()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn the errors of unpacking and of the disk into messages that name the file."""
    try:
        yield
    except OSError as error:
        if error.errno is None and packing_of(path):  # pyarrow's, of a stream that it cannot unpack
            packing = "zstd" if path.name.endswith(".zst") else "gzip"
            raise ValueError(f"{path} is not a complete {packing} file ({error}); download it again") from error
        raise ValueError(f"cannot read {path} ({error.strerror or error}); check the file") from error


def opened(path: Path) -> Any:
    """Open a file of text, unpacked if its name and its first bytes say that it is packed."""
    with _named(path):
        with open(path, "rb") as file:
            beginning = file.read(LONGEST)
        packing = {".gz": GZIP, ".zst": ZSTD}.get(packing_of(path))
        if packing is None or not beginning.startswith(packing.magic):
            check_format(path, beginning)
            if packing is not None:
                name = packing.name.removeprefix("packed by ")
                raise ValueError(f"{path} is not a complete {name} file (it begins otherwise); download it again")
            return open(path, "rb")
        stream: Any = pa.input_stream(str(path), compression="gzip" if packing is GZIP else "zstd")
    found: Any = io.BufferedReader(_Unpacked(path, stream), BLOCK)
    check_format(path, found.peek(LONGEST), packing=packing)
    return found


def most_unpacked(path: Path) -> float:
    """Return how many bytes a file may become when it is unpacked."""
    return max(MOST_UNPACKED * os.path.getsize(path), LARGE)


def swells(path: Path) -> str:
    """Return the message about a file that becomes larger than that."""
    return f"{path} unpacks to more than {MOST_UNPACKED} times its size, as no text does"
