"""The same records come out of every kind of file; a damaged one is one line that names the file and the place."""

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict

from load_data import load, load_file

RECORDS = [
    {"prompt": f'Question {n}, "quoted"\nand é', "chosen": f"c{n}", "rejected": "r", "user": f"u{n % 3}", "n": n}
    for n in range(60)
]
CHATS = [
    {"chosen": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "yes"}],
     "rejected": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "no"}]}
    for n in range(5)
]  # fmt: skip


def packed(path: Path, content: bytes) -> None:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    elif path.suffix == ".zst":
        content = pa.compress(content, codec="zstd", asbytes=True)
    path.write_bytes(content)


def write(path: Path, records: list[dict]) -> Path:
    """Write records in the format that the name says."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    path.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".jsonl"):
        packed(path, "".join(json.dumps(record) + "\n" for record in records).encode())
    elif name.endswith(".json"):
        packed(path, json.dumps(records, indent=1).encode())
    elif name.endswith(".csv"):
        plain = path.parent / "plain"
        with plain.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(
                {key: value if isinstance(value, str | int) else json.dumps(value) for key, value in record.items()}
                for record in records
            )
        packed(path, plain.read_bytes())
        plain.unlink()
    elif name.endswith(".parquet"):
        pa.parquet.write_table(pa.Table.from_pylist(records), path)
    elif name.endswith("stream.arrow"):
        table = pa.Table.from_pylist(records)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    else:
        pa.feather.write_feather(pa.Table.from_pylist(records), path, compression="uncompressed")
    return path


KINDS = [
    *(f"a.{kind}{packing}" for kind in ("jsonl", "json", "csv") for packing in ("", ".gz", ".zst")),
    *("a.parquet", "a.arrow", "a-stream.arrow"),
]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("records", [RECORDS, CHATS], ids=["text", "chat"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, records):
    expected = load_file(str(write(tmp_path / "a.jsonl", records))).rows
    found = load_file(str(write(tmp_path / "b" / name, records))).rows
    assert len(found) == len(records)
    assert [(row.prompt, row.chosen, row.rejected, row.extra) for row in found] == [
        (row.prompt, row.chosen, row.rejected, row.extra) for row in expected
    ]


def test_json_lines_named_json_are_read_as_lines(tmp_path):
    content = write(tmp_path / "a.jsonl", RECORDS).read_bytes()
    (tmp_path / "b.json").write_bytes(b"\xef\xbb\xbf" + content)
    assert len(load_file(str(tmp_path / "b.json")).rows) == 60
    (tmp_path / "c.json").write_text(json.dumps(RECORDS[0]) + "\n{not json}\n")
    with pytest.raises(ValueError, match=r"c\.json:2: not JSON"):
        load_file(str(tmp_path / "c.json"))


def test_folders_that_the_library_datasets_has_written_are_read(tmp_path):
    tables = {"train": Dataset.from_list(RECORDS[:50]), "test": Dataset.from_list(RECORDS[50:])}
    DatasetDict(tables).save_to_disk(tmp_path / "both")
    Dataset.from_list(RECORDS).save_to_disk(tmp_path / "one")
    sizes = [len(load(["files"], split, data_dir=str(tmp_path / "both"), seed=0).rows) for split in ("train", "test")]
    assert sizes == [50, 10]
    assert len(load(["files"], "test", data_dir=str(tmp_path / "one"), seed=0).rows) == 6


def test_a_folder_as_the_hub_lays_it_out_is_read(tmp_path):
    for split, records in (("train", RECORDS[:50]), ("test", RECORDS[50:])):
        write(tmp_path / "data" / f"{split}-00000-of-00002.parquet", records[::2])
        write(tmp_path / "data" / f"{split}-00001-of-00002.parquet", records[1::2])
    (tmp_path / "README.md").write_text("about")
    sizes = [len(load(["files"], split, data_dir=str(tmp_path), seed=0).rows) for split in ("train", "test")]
    assert sizes == [50, 10]
    assert {row.group for row in load(["files"], "train", data_dir=str(tmp_path), seed=0).rows} == {"data"}


def test_a_data_folder_named_like_a_split_tells_nothing(tmp_path):
    write(tmp_path / "eval" / "pairs.jsonl", RECORDS)
    assert len(load(["files"], "train", data_dir=str(tmp_path / "eval"), seed=0).rows) == 54


def bad(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


HEADER = "prompt,chosen,rejected\n"
MISTAKES = {
    "a list of numbers": ("a.json", "[1]", "a.json, row 1: the row is int, expected an object"),
    "a number": ("a.json", "7", "a.json: the file is int, expected a list of objects"),
    "an object of numbers": ("a.json", '{"a": {"0": "x"}}', "the file is one object whose 'a' holds no responses"),
    "half a list": ("a.json", '[{"prompt": "p"}', "a.json: not JSON"),
    "deep JSON": ("a.json", "[" * 100_000, "a.json: not JSON"),
    "a row too long": ("a.csv", HEADER + "a,b,c,d\n", "a.csv, row 1: more values than the 3 columns of the header"),
    "a row too short": ("a.csv", HEADER + "a,b,c\na,b\n", "a.csv, row 2: fewer values than the 3 columns"),
    "an open quote": ("a.csv", HEADER + '"a,b,c\n', "a.csv: not CSV near line"),
    "a column twice": ("a.csv", "prompt,prompt\na,b\n", "a.csv: the header has 'prompt' twice"),
    "CSV of Latin-1": ("a.csv", (HEADER + "é,b,c\n").encode("latin-1"), "a.csv: byte 23 is not UTF-8"),
    "an empty CSV": ("a.csv", "", "a.csv has no pairs"),
    "JSON of Latin-1": ("a.json", '["é"]'.encode("latin-1"), "a.json: byte 2 is not UTF-8"),
    "no Parquet": ("a.parquet", "PAR1" + "x" * 99, "a.parquet is not a complete Parquet file"),
    "no Arrow": ("a.arrow", "ARROW1" + "x" * 99, "a.arrow is not a complete Arrow file"),
    "text named Arrow": ("a.arrow", '{"prompt": "p"}', "a.arrow is not a complete Arrow file"),
    "an empty Parquet": ("a.parquet", "", "a.parquet is not a complete Parquet file"),
    "no zstd": ("a.jsonl.zst", b"\x28\xb5\x2f\xfd" + b"x" * 99, "a.jsonl.zst is not a complete zstd file"),
    "no gzip": ("a.csv.gz", b"\x1f\x8b" + b"x" * 99, "a.csv.gz is not a complete gzip file"),
    "Parquet named lines": ("a.jsonl", "PAR1" + "x" * 99, "let its name end in .parquet"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, mistake):
    name, content, told = MISTAKES[mistake]
    with pytest.raises(ValueError) as found:
        load_file(str(bad(tmp_path / name, content)))
    message = str(found.value)
    assert told in message and str(tmp_path) in message and "\n" not in message and len(message) < 500


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a-stream.arrow", "a.jsonl.zst", "a.json.gz"])
@pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
def test_a_file_that_was_cut_short_is_one_line(tmp_path, name, share):
    path = write(tmp_path / name, RECORDS * 50)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"is not a complete \w+ file \(.*; (write or )?download it again$") as found:
        load_file(str(path))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_that_swells_as_no_text_does_is_refused(tmp_path, name):
    long = {"prompt": "p" * 2_000_000, "chosen": "c", "rejected": "r"}
    path = tmp_path / name
    if name == "a.parquet":
        prompts = pa.array(["p" * 2_000_000] * 60).dictionary_encode()
        sides = pa.array(["c"] * 60), pa.array(["r"] * 60)
        pa.parquet.write_table(pa.table([prompts, *sides], ["prompt", "chosen", "rejected"]), path, compression="zstd")
    else:
        packed(path, (json.dumps(long) + "\n").encode() * 60)
    with pytest.raises(ValueError, match="unpacks to more than 200 times its size, as no text does"):
        load_file(str(path))


def test_a_folder_without_files_of_records_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds no file of \*\.jsonl, .* or \*\.tsv \(also \.gz or \.zst\)"):
        load(["files"], "train", data_dir=str(tmp_path), seed=0)


def test_tabs_and_other_names_of_known_forms_are_read(tmp_path):
    (tmp_path / "a.tsv").write_text("prompt\tchosen\trejected\nq\tc, d\tr\n")
    (tmp_path / "b.ndjson").write_text('{"prompt": "q", "chosen": "c", "rejected": "r"}\n')
    rows = [load_file(str(tmp_path / name)).rows[0] for name in ("a.tsv", "b.ndjson")]
    assert [row.chosen for row in rows] == ["c, d", "c"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.txt", "x", r"a.txt has no ending that tells what it is; expected \*.jsonl, "),
        ("a.csv", "prompt;chosen;rejected\nq;c;r\n", "a.csv: its columns are divided by ';'; expected ','"),
        (
            "a.csv",
            "prompt,chosen,rejected\n\"[{'role': 'user', 'content': 'q'}]\",c,r\n",
            "row 1: 'prompt' holds a list",
        ),
    ],
)
def test_what_looks_like_another_form_is_told(tmp_path, name: str, text: str, told: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=told):
        load_file(str(tmp_path / name))
