"""Formats of files that are not the text which their names promise, known by their first bytes, and the way out."""

import shlex
from pathlib import Path
from typing import NamedTuple


class Format(NamedTuple):
    """A format, the bytes that tell it, and the way to a file that can be read, in which FILE is the file's path."""

    name: str
    magic: bytes
    way_out: str
    offset: int = 0  # of the magic bytes


EXPORT = "save it as JSON lines, one object per line"
RENAME = "let its name end in {ending}"
GZIP = Format("packed by gzip", b"\x1f\x8b", "let its name end in .gz, or unpack it: gzip -dc FILE > pairs.jsonl")
ZSTD = Format(
    "packed by zstd", b"\x28\xb5\x2f\xfd", "let its name end in .zst, or unpack it: zstd -dc FILE > pairs.jsonl"
)

FORMATS = (
    GZIP,
    ZSTD,
    Format("a Parquet file", b"PAR1", RENAME.format(ending=".parquet")),
    Format("an Arrow file", b"ARROW1", RENAME.format(ending=".arrow")),
    Format("an Arrow stream", b"\xff\xff\xff\xff", RENAME.format(ending=".arrow")),
    Format("packed by xz", b"\xfd7zXZ\0", "unpack it: xz -dc FILE > pairs.jsonl"),
    Format("packed by bzip2", b"BZh", "unpack it: bzip2 -dc FILE > pairs.jsonl"),
    Format("a 7z archive", b"7z\xbc\xaf\x27\x1c", "unpack it: 7z x FILE"),
    Format("a zip archive", b"PK\x03\x04", f"unpack it: unzip FILE; if it is a spreadsheet, {EXPORT}"),
    Format("a tar archive", b"\0ustar", "unpack it: tar -xf FILE", 256),
    Format("an SQLite database", b"SQLite format 3\0", EXPORT),
    Format("an HDF5 file", b"\x89HDF\r\n\x1a\n", EXPORT),
    Format("text in UTF-16", b"\xff\xfe", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > pairs.jsonl"),
    Format("text in UTF-16", b"\xfe\xff", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > pairs.jsonl"),
)
LONGEST = max(each.offset + len(each.magic) for each in FORMATS)  # bytes from the beginning that tell every format


def check_format(path: Path, beginning: bytes, *, packing: Format | None = None) -> None:
    """Refuse a file that holds no text but is of a format that its first bytes tell.

    Args:
        path: The file.
        beginning: Its first `LONGEST` bytes.
        packing: The format from which these bytes were unpacked; None: they are the file's own.

    Raises:
        ValueError: Naming the format, and the way out.
    """
    for each in FORMATS:
        if beginning[each.offset :].startswith(each.magic):
            if packing is not None:
                inside = packing.name.removeprefix("packed by ")
                raise ValueError(f"{path} holds, inside {inside}, what is {each.name}, not text; unpack it first")
            way_out = each.way_out.replace("FILE", shlex.quote(str(path)))
            raise ValueError(f"{path} is {each.name}, not the text that its name promises; {way_out}")
