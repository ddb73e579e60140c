"""The parts of `gpu_check`: what each does, how long it may take, and how its process reports what it finds."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fed.files import write_whole
from scripts.options import HH

ROOT = Path(__file__).resolve().parents[2]
LEAST = 5.0  # seconds without which no part is begun
SHORTER = 8  # lengths of pairs are divided by this in a dry run


@dataclass(frozen=True)
class Options:
    """The command line of `gpu_check`; a part's process gets the same."""

    dry: bool = False
    parts: list[str] = field(default_factory=lambda: ["all"])
    seconds: int = 470
    folder: str = "gpu_check"
    batch: int = 64
    model: str = ""
    data_dir: str = str(HH)


@dataclass(frozen=True)
class Part:
    """A part: `run(part, options, report)` of its module in this folder."""

    name: str
    meaning: str
    module: str
    seconds: float  # it may take so long, and all that is left if that is less
    shape: str = ""  # of the model, by its name in the benchmark's workload


PARTS = (
    Part("tests", "tests marked gpu", "suite", 120),
    Part("step_gpt2", "one DPO step, GPT-2 124M", "steps", 50, "gpt2"),
    Part("step_smollm2", "one DPO step, SmolLM2-135M", "steps", 55, "smollm2"),
    Part("step_llama1b", "one DPO step, a Llama of 1.2 billion", "steps", 75, "llama1b"),
    Part("kernels", "where the time of a step goes, SmolLM2-135M", "kernels", 35, "smollm2"),
    Part("federation", "the federation's overhead with 10 clients, SmolLM2-135M", "federation", 55, "smollm2"),
    Part("compare", "federated, centralised and local DPO of SmolLM2 on HH", "comparison", math.inf),
)


def choose(names: list[str]) -> list[Part]:
    """Return the named parts in their order; `all` names every part.

    Raises:
        ValueError: If there is no such part, or none is named.
    """
    known = {part.name: part for part in PARTS}
    wanted = list(known) if names == ["all"] else names
    if not wanted:
        raise ValueError(f"parts is empty; expected all or some of {', '.join(known)}")
    if unknown := [name for name in wanted if name not in known]:
        expected = f"expected all or some of {', '.join(known)}"
        raise ValueError(f"parts={','.join(names)}: there is no {', '.join(unknown)}; {expected}")
    return [part for name, part in known.items() if name in wanted]


class Skip(Exception):
    """A part cannot be carried out on this machine; the text says why."""


class Failed(Exception):
    """A part was carried out and found a failure, which the text names."""


class Report:
    """The findings of a part, written to a file whenever something is added: a process that is ended keeps them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, Any] = {}

    def add(self, **found: Any) -> None:
        """Add findings, or replace those of the same name."""
        self._found.update(found)
        write_json(self._file, self._found)


def write_json(file: Path, found: Mapping[str, Any]) -> None:
    """Write the findings so that a reader never sees half of them; numbers that are none become null."""
    write_whole(file, (json.dumps(_plain(found), indent=2, allow_nan=False) + "\n").encode())


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
