"""The policies' responses after training, next to the data's and the reference's responses to the same prompts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from fed.reports.runs import Method, Run

REFERENCE = "reference, before training"
CHOSEN = "in the data"


class Response(NamedTuple):
    """A text, its label, and its method; None: the reference, or the data."""

    label: str
    method: str | None
    text: str


class Sample(NamedTuple):
    """A prompt and the responses to it."""

    prompt: str
    responses: list[Response]


def final_samples(methods: Sequence[Method]) -> list[Sample]:
    """Return for each prompt the data's, the reference's and each method's response, of its first seed's last round."""
    found: dict[tuple[str, int], list[Response]] = {}
    for method in methods:
        for key, row in _last_round(method.runs[0]):
            responses = found.setdefault(key, [])
            # Runs of earlier versions have none.
            if "chosen" in row and all(response.label != CHOSEN for response in responses):
                responses.insert(0, Response(CHOSEN, None, row["chosen"]))
            if row["reference"] not in (response.text for response in responses if response.label == REFERENCE):
                responses.append(Response(REFERENCE, None, row["reference"]))
            # Where clients train alone, each has its own policy; the first one stands for all.
            whose = "" if row["who"] == "server" else f", {row['who']}"
            responses.append(Response(f"{method.name}{whose}, round {row['round']}", method.name, row["policy"]))
    return [Sample(prompt, responses) for (prompt, _), responses in found.items()]


def _last_round(run: Run) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    """Yield the rows of the first model that has any, each with its prompt and how often that came before."""
    last = max((row["round"] for row in run.samples), default=0)
    rows = [row for row in run.samples if row["round"] == last]
    times: Counter[str] = Counter()
    for row in rows:
        if row["who"] == rows[0]["who"]:
            yield (row["prompt"], times[row["prompt"]]), row
            times[row["prompt"]] += 1
