"""The file partition.json: who has which rows, for later readers and for comparing runs."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fed.data.rows import Preference


def write_partition(
    path: str | Path,
    parts: Sequence[Sequence[int]],
    rows: Sequence[Preference],
    test: Sequence[Preference] = (),
    names: Sequence[str] = (),
) -> None:
    """Write `describe` as JSON; the same parts of the same rows give the same bytes."""
    Path(path).write_text(json.dumps(describe(parts, rows, test, names)) + "\n", encoding="utf-8")


def describe(
    parts: Sequence[Sequence[int]],
    rows: Sequence[Preference],
    test: Sequence[Preference] = (),
    names: Sequence[str] = (),
) -> dict[str, object]:
    """Describe the rows of each client, with its name if the data names clients, and name the test pairs.

    "cover" is true if clients and "unused" together have every row, "disjoint" if no row has two clients. A pair, and a
    conversation, has the same name in all runs.
    """
    used = {index for part in parts for index in part}
    unused = [index for index in range(len(rows)) if index not in used]
    return {
        "num_clients": len(parts),
        "num_rows": len(rows),
        "cover": used | set(unused) == set(range(len(rows))),
        "disjoint": len(used) == sum(map(len, parts)),
        "unused": unused,
        "clients": [
            {**({"name": names[k]} if names else {}), **_describe_client([rows[index] for index in part], part)}
            for k, part in enumerate(parts)
        ],
        "test": {
            "pairs": [_name([row.prompt, row.chosen, row.rejected]) for row in test],
            "conversations": [_name(row.conversation) for row in test],
        },
    }


def _describe_client(rows: Sequence[Preference], indices: Sequence[int]) -> dict[str, object]:
    text = json.dumps([[row.prompt, row.chosen, row.rejected] for row in rows])
    return {
        "num_rows": len(rows),
        "groups": dict(sorted(Counter(row.group for row in rows).items())),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "rows": list(indices),
    }


def _name(content: object) -> str:
    """Return sixteen digits of the SHA-256 of `content`."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
