"""The settings in which the methods' runs differ, and the machines they ran on."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fed.config.schema import flat
from fed.reports.runs import OF_THE_RUN, Method

ABSENT = "—"


def differing(methods: Sequence[Method]) -> list[tuple[str, list[str]]]:
    """Return the dotted keys whose values differ among the methods' first seeds, with each method's value."""
    settings = [{key: _shown(value) for key, value in flat(method.runs[0].config)} for method in methods]
    keys = sorted({key for found in settings for key in found if key not in OF_THE_RUN})
    rows = [(key, [found.get(key, ABSENT) for found in settings]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def environments(methods: Sequence[Method]) -> list[tuple[str, str]]:
    """Return facts of the environment; where runs differ, all values."""
    facts: dict[str, dict[str, None]] = {}
    for method in methods:
        for run in method.runs:
            for name, value in _facts(run.environment):
                facts.setdefault(name, {})[str(value)] = None
    return [(name, "; ".join(values)) for name, values in facts.items()]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _facts(environment: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    yield "commit", environment["commit"] or "unknown"
    yield "processor", environment["processor"]
    yield "device", environment["device"]
    yield "threads", environment["threads"]
    yield "system", environment["platform"]
    yield "python", environment["python"]
    yield from environment["packages"].items()
