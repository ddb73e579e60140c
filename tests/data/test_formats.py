"""A file of a binary format is told what it is, and the command that a message names makes a file that is read."""

import bz2
import gzip
import lzma
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest

from load_data import load_file
from support.bad_inputs import ENOUGH, own_line


def written(name: str, path: Path) -> None:
    """Write the pairs of `ENOUGH` in a format."""
    table = pa.Table.from_pylist([{"prompt": f"p{n}", "chosen": "c", "rejected": "r"} for n in range(60)])
    if name == "a Parquet file":
        pa.parquet.write_table(table, path)
    elif name == "an Arrow file":
        pa.feather.write_feather(table, path, compression="uncompressed")
    elif name == "an Arrow stream":
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    elif name == "a zip archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("pairs.jsonl", ENOUGH)
    elif name == "an SQLite database":
        with sqlite3.connect(path) as database:
            database.execute("create table pairs (prompt)")
        database.close()
    elif name == "a tar archive":
        (path.parent / "pairs.jsonl").write_bytes(ENOUGH)
        subprocess.run(["tar", "-cf", path, "-C", path.parent, "pairs.jsonl"], check=True)
        (path.parent / "pairs.jsonl").unlink()
    else:
        packed = {
            "packed by gzip": gzip.compress,
            "packed by xz": lzma.compress,
            "packed by bzip2": bz2.compress,
            "packed by zstd": lambda data: pa.compress(data, codec="zstd", asbytes=True),
            "text in UTF-16": lambda data: data.decode().encode("utf-16"),
            "a 7z archive": lambda data: b"7z\xbc\xaf\x27\x1c" + data,
            "an HDF5 file": lambda data: b"\x89HDF\r\n\x1a\n" + data,
        }
        path.write_bytes(packed[name](ENOUGH))


def told(path: Path) -> str:
    with pytest.raises(ValueError) as found:
        load_file(str(path))
    return str(found.value)


@pytest.mark.parametrize(
    "name",
    [
        *("a Parquet file", "an Arrow file", "an Arrow stream", "packed by gzip", "packed by zstd", "packed by xz"),
        *("packed by bzip2", "a 7z archive", "a zip archive", "a tar archive", "an SQLite database", "an HDF5 file"),
        "text in UTF-16",
    ],
)
def test_a_file_of_another_format_is_told_its_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / "my data (1).jsonl"
    written(name, path)
    message = told(path)
    assert message.startswith(f"{path} is {name}, not the text that its name promises; ") and "\n" not in message


@pytest.mark.parametrize("name", ["packed by gzip", "packed by xz", "text in UTF-16"])
def test_the_command_that_is_named_makes_a_file_that_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "my data (1).jsonl"
    written(name, path)
    command = told(path).partition(" it: ")[2] or told(path).partition("UTF-8: ")[2]
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, check=True, timeout=120)
    assert len(load_file(str(tmp_path / "pairs.jsonl")).rows) == 60


def test_what_gzip_holds_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(gzip.compress(ENOUGH)))
    assert f"{path} holds, inside gzip, what is packed by gzip, not text; unpack it" in told(path)
    path.write_bytes(b"PAR1" + bytes(99))
    assert f"{path} is a Parquet file" in told(path)


@pytest.mark.parametrize("text", ["PAR1", "ARROW1", "BZh91", "PK\x03\x04", "x" * 300 + "ustar"])
def test_a_record_may_hold_those_bytes(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(own_line(prompt=text))
    assert [row.prompt for row in load_file(str(path)).rows] == [text]
