"""Files of records: JSON lines, JSON, CSV, Parquet and Arrow; errors name the file, and the line or the row."""

import csv
import functools
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import compute as pc
from pyarrow import parquet

from fed.config.places import check_data_dir
from fed.data.unpacking import most_unpacked, opened, packing_of, swells

LONGEST_LINE = 2**26  # bytes; a damaged or foreign file may be one endless line
AT_ONCE = 1000  # rows of a table that are Python objects at a time

Fields = dict[str, Any]
Numbered = Iterator[tuple[str, Fields]]  # "path:line" or "path, row n", and the fields

# Beside the tables that the library `datasets` has written.
NO_RECORDS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
PYTHON_LIST = re.compile(r"\[\{'[^']*': ")
NOTES = re.compile(r"(README|LICEN[CS]E|NOTICE)|.*\.md$", re.IGNORECASE)
SHARD = re.compile(r"\d+-of-\d+")


def records_of(path: Path) -> Numbered:
    """Yield the records of a file by the ending of its name.

    Raises:
        ValueError: If it cannot be read, or a line or row is no record.
    """
    if not has_reader(path):
        raise ValueError(f"{path} has no ending that tells what it is; expected {ENDINGS}")
    yield from READERS[_ending(path)](path)


def has_reader(path: Path) -> bool:
    """Return True if `records_of` reads files of this name."""
    return bool(_ending(path))


def data_files(folder: Path, named_split: Callable[[Path], object]) -> list[Path]:
    """List the files of records of a folder; without any, those of its folders that are named train or test.

    Raises:
        ValueError: If there are none.
    """
    check_data_dir(folder)
    try:
        files = _readable(folder.iterdir())
        files = files or [path for path in _readable(folder.glob("*/*")) if named_split(path)]
    except OSError as error:
        raise ValueError(f"cannot read data_dir={folder} ({error.strerror}); check its permissions") from error
    if not files:
        raise ValueError(f"data_dir={folder} holds no file of {ENDINGS}; give the folder that does")
    return files


def others(folder: Path) -> list[str]:
    """List the names of the files of a folder that no reader knows, but for licences and notes."""
    found = (path for path in folder.iterdir() if path.is_file() and not has_reader(path)) if folder.is_dir() else ()
    return sorted(path.name for path in found if not (path.name.startswith(".") or NOTES.match(path.name)))


def stem(path: Path) -> str:
    """Return the name of a file without its endings and without the number of a shard."""
    name = path.name.removesuffix(_ending(path) + packing_of(path))
    return SHARD.sub("", name)


def _readable(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if _ending(path) and not _is_beside(path.name) and path.is_file())


def _is_beside(name: str) -> bool:
    """Return True for the library's own files beside its tables."""
    return name in NO_RECORDS or (name.startswith("cache-") and name.endswith(".arrow"))


def _ending(path: Path) -> str:
    """Return the ending of a name that has a reader, without that of its packing; "" if none has."""
    name, packing = path.name.removesuffix(packing_of(path)), packing_of(path)
    found = next((ending for ending in READERS if name.endswith(ending)), "")
    return "" if packing and found in TABLES else found


def _json_lines(path: Path) -> Numbered:
    with opened(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            if line.strip():
                where = f"{path}:{number}"
                if len(line) > LONGEST_LINE:
                    raise ValueError(
                        f"{where}: the line is longer than {LONGEST_LINE} bytes, expected one object per line"
                    )
                yield where, _object(where, _parsed(where, line, "expected one object per line"), "line")


def _json(path: Path) -> Numbered:
    """Yield the objects of a list, or, of an object whose values are lists or objects, a record for each name."""
    with opened(path) as file:
        content = file.read()
    if _is_lines(content):
        yield from _json_lines(path)
        return
    value = _parsed(str(path), content, "expected a list of objects")
    if isinstance(value, dict):
        yield from _by_prompt(path, value)
        return
    if not isinstance(value, list):
        raise ValueError(f"{path}: the file is {type(value).__name__}, expected a list of objects")
    for number, item in enumerate(value, start=1):
        where = f"{path}, row {number}"
        yield where, _object(where, item, "row")


def _is_lines(content: bytes) -> bool:
    """Return True if the first line is a whole object and another follows: JSON lines by another name."""
    first, _, rest = content.lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
    if not (first.startswith(b"{") and rest.lstrip().startswith(b"{")):
        return False
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return False
    return True


def _by_prompt(path: Path, found: Fields) -> Numbered:
    """Yield records of {prompt: {"responses", "pairs", ...}} and of {prompt: [completion, ...]}."""
    for number, (prompt, value) in enumerate(found.items(), start=1):
        where = f"{path}, row {number}"
        if isinstance(value, dict) and "responses" in value:
            yield where, {"prompt": prompt, **value}
        elif isinstance(value, list) and value and all(isinstance(item, str) for item in value):
            for completion in value:
                yield where, {"prompt": prompt, "completion": completion}
        else:
            raise ValueError(
                f"{path}: the file is one object whose {prompt!r:.40} holds no responses; expected a list of objects, "
                'or prompts as in {"Hi!": {"responses": [...], "pairs": [[0, 1]]}}'
            )


def _csv(path: Path, delimiter: str = ",") -> Numbered:
    with opened(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
        csv.field_size_limit(LONGEST_LINE)
        try:
            rows = csv.DictReader(lines, strict=True, delimiter=delimiter)
            names = list(rows.fieldnames or ())
            if len(names) == 1 and (other := next((mark for mark in ";\t|" if mark in names[0]), None)):
                raise ValueError(f"{path}: its columns are divided by {other!r}; expected {delimiter!r}")
            if twice := [name for name in names if names.count(name) > 1]:
                raise ValueError(f"{path}: the header has {twice[0]!r} twice; give each column a name of its own")
            for number, row in enumerate(rows, start=1):
                where = f"{path}, row {number}"
                if None in row:
                    raise ValueError(f"{where}: more values than the {len(names)} columns of the header")
                if None in row.values():
                    raise ValueError(f"{where}: fewer values than the {len(names)} columns of the header")
                yield where, {name: _cell(where, name, value) for name, value in row.items()}
        except csv.Error as error:
            raise ValueError(f"{path}: not CSV near line {rows.line_num} ({error})") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error


def _cell(where: str, name: str, text: str) -> Any:
    """Return what a cell holds: a list of objects written as JSON is one, all else is text.

    Raises:
        ValueError: If it holds such a list as Python prints it, which pandas writes.
    """
    if PYTHON_LIST.match(text):
        raise ValueError(
            f"{where}: {name!r} holds a list as Python prints it; write it as JSON, with json.dumps, or save the table "
            "as Parquet or JSON lines"
        )
    if text.startswith("[") and text.endswith("]"):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            return value
    return text


def _parquet(path: Path) -> Numbered:
    def batches() -> Iterator[pa.RecordBatch]:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(AT_ONCE)

    yield from _of_table(path, "Parquet", batches())


def _arrow(path: Path) -> Numbered:
    def batches() -> Iterator[pa.RecordBatch]:
        with pa.OSFile(str(path)) as file:
            is_file = file.read(6) == b"ARROW1"
            file.seek(0)
            if is_file:
                reader = pa.ipc.open_file(file)
                yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
            else:
                yield from pa.ipc.open_stream(file)

    yield from _of_table(path, "Arrow", batches())


def _of_table(path: Path, name: str, batches: Iterator[pa.RecordBatch]) -> Numbered:
    limit, read, number = most_unpacked(path), 0, 0
    try:
        for batch in batches:
            for start in range(0, batch.num_rows, AT_ONCE):
                part = batch.slice(start, AT_ONCE)
                if (read := read + sum(map(_size, part.columns))) > limit:
                    raise ValueError(swells(path))
                for fields in part.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", fields
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, row {number + 1} or one of the next {AT_ONCE}: a text is not UTF-8") from error
    except (pa.ArrowException, OSError) as error:  # some of pyarrow's are ValueErrors, or OSErrors without a number
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"cannot read {path} ({error.strerror}); check the file") from error
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a complete {name} file ({reason}); write or download it again") from error


def _size(column: pa.Array) -> int:
    """Return the bytes of a column, at most, once its values are objects of their own."""
    if not pa.types.is_dictionary(column.type):
        return int(column.nbytes)
    try:
        longest = pc.max(pc.binary_length(column.dictionary)).as_py() or 0
    except pa.ArrowNotImplementedError:  # of numbers
        longest = 8
    return int(longest) * len(column)


def _parsed(where: str, content: bytes, expected: str) -> Any:
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); {expected}") from error


def _object(where: str, value: Any, place: str) -> Fields:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: the {place} is {type(value).__name__}, expected an object")
    return value


READERS: dict[str, Callable[[Path], Numbered]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": functools.partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
    ".arrow": _arrow,
}
TABLES = (".parquet", ".arrow")  # packed within; gzip around them is not usual
ENDINGS = "*.jsonl, *.ndjson, *.json, *.csv or *.tsv (also .gz or .zst), *.parquet or *.arrow"
