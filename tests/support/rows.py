"""Data files for tests, and the rows that are read from them."""

import gzip
import json

from load_data import load


def write(path, records):
    """Write records as JSON lines, gzipped if the name says so; a str is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def dialogue(question, chosen, rejected):
    start = f"\n\nHuman: {question}\n\nAssistant:"
    return {"chosen": start + chosen, "rejected": start + rejected}


def pairs(num_rows, per_conversation=1):
    return [
        {"prompt": f"question {i // per_conversation}", "chosen": f"c{i}", "rejected": "r"} for i in range(num_rows)
    ]


def read(path, name="files", seed=0):
    """Return the rows of both splits in one list."""
    loaded = [load([name], split, data_dir=str(path), seed=seed) for split in ("train", "test")]
    return [row for part in loaded for row in part.rows]
