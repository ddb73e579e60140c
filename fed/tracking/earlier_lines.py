"""Lines of `metrics.jsonl` as earlier versions wrote them, with the names and meanings of today."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fed.intervals import wilson

RENAMED = {"kl": "log_ratio", "kl_sd": "log_ratio_sd"}


def as_now(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file in order, earlier ones translated.

    `kl` was the mean that is called `log_ratio` now. `accuracy_se` was a standard error, in place of which stand the
    ends of Wilson's interval, if the line says how many pairs there were. `decay` was the decay that a client's round
    ended with, which is `decay_next` now; `decay` is the one in force during the round. In round 1 a client was
    compared with the untrained model's accuracy, 0, so that only an accuracy of 0 let it decay: a decay below 1 of any
    other client means that the decay was constant.
    """
    rows = list(rows)
    constant = _is_constant(rows)
    ended_with: dict[str, float] = {}
    for row in rows:
        found = {RENAMED.get(name, name): value for name, value in row.items() if name != "accuracy_se"}
        if "accuracy_se" in row and row.get("accuracy") is not None and row.get("examples"):
            found["accuracy_low"], found["accuracy_high"] = wilson(row["accuracy"], row["examples"])
        if row["split"] == "train" and "decay" in row and "decay_next" not in row:
            found["decay"] = row["decay"] if constant else ended_with.get(row["who"], 1.0)
            found["decay_next"] = ended_with[row["who"]] = row["decay"]
        yield found


def _is_constant(rows: Sequence[dict[str, Any]]) -> bool:
    """Return True if a client that could not decay in round 1 has a decay below 1 there."""
    first = [row for row in rows if row["round"] == 1]
    above_0 = {row["who"] for row in first if row["split"] == "validation" and (row.get("accuracy") or 0) > 0}
    return any(row["split"] == "train" and row["who"] in above_0 and row.get("decay", 1) < 1 for row in first)
