"""Responses of a policy to prompts, as records of data that train as they are."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fed.data.chat import in_form
from fed.data.prompts import different
from fed.data.rows import Preference, Skip
from fed.model.generation import Draws, ends_of, generate
from fed.model.policy import Policy
from feedback.asking import Asking, as_json, columns_of
from feedback.job_files import JobFile, part_of

OnDone = Callable[[int], None]  # called with how many responses are there


@dataclass(frozen=True)
class Prompts:
    """The prompts of a job.

    Attributes:
        rows: A row for each different prompt.
        shard: The share of them that is this job's, "i/n"; None: all.
        n: Responses to each.
    """

    rows: Sequence[Preference]
    shard: str | None = None
    n: int = 1

    @classmethod
    def of(cls, rows: Sequence[Preference], limit: int | None, shard: str | None, n: int) -> "Prompts":
        """Return the first `limit` different prompts of the rows."""
        return cls(different(rows)[:limit], shard, n)

    def digest(self) -> str:
        """Return a hash of all prompts."""
        text = json.dumps([as_json(row) for row in self.rows])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def key_of(line: Any) -> tuple[int, int]:
    """Return what tells a response from others: the number of its prompt, and that of its draw."""
    return line["index"], line["draw"]


def draw_responses(
    policy: Policy, prompts: Prompts, asking: Asking, draws: Draws, file: JobFile, generator: str, on_done: OnDone
) -> Counter[str]:
    """Draw the responses that `file` does not have yet, batch by batch.

    Args:
        policy: The model.
        prompts: What it is asked.
        asking: How.
        draws: How responses are drawn; what ends them comes from `asking`.
        file: Gets a line for each response: prompt, completion, the row's columns, and how the response came about.
        generator: The name of the policy in these lines.
        on_done: Is told how far this has come.

    Returns:
        How many prompts of the shard have no response, by reason.
    """
    draws = replace(draws, stop=asking.stop, stop_strings=asking.stop_strings)
    own = [(index, in_form(row, asking.chat)) for index, row in part_of(prompts.rows, prompts.shard)]
    found = asking.ids(policy, [row for _, row in own])
    skipped = Counter(ids.reason for ids in found if isinstance(ids, Skip))
    usable = [(index, row, ids) for (index, row), ids in zip(own, found, strict=True) if not isinstance(ids, Skip)]
    jobs = [(index, draw, row, ids) for index, row, ids in usable for draw in range(prompts.n)]
    done = file.done
    left = [job for job in jobs if job[:2] not in done]

    def write(places: Sequence[int], responses: Sequence[tuple[int, ...]]) -> None:
        lines = []
        for place, response in zip(places, responses, strict=True):
            index, draw, row, _ = left[place]
            text = asking.text(policy, response)
            ended = _has_ended(policy, draws, response, text)
            lines.append(line_of(row, index, draw, text, len(response), "stop" if ended else "length", generator))
        file.add(lines)
        on_done(len(file.lines))

    generate(policy, [job[3] for job in left], draws, numbers=[job[:2] for job in left], on_batch=write)
    return skipped


def _has_ended(policy: Policy, draws: Draws, response: Sequence[int], text: str) -> bool:
    if response and response[-1] in ends_of(policy, draws):
        return True
    whole = policy.tokenizer.decode(response, skip_special_tokens=True)
    return len(whole) > len(text)  # a stop string was cut off


def line_of(
    row: Preference, index: int, draw: int, text: str, tokens: int, reason: str, generator: str
) -> dict[str, Any]:
    """Return the record of one response: its row's columns and prompt, the text, and how it came about."""
    return {
        **columns_of(row),
        **as_json(row),
        "completion": text,
        "generator": generator,
        "index": index,
        "draw": draw,
        "tokens": tokens,
        "finish_reason": reason,
    }
