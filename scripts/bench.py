"""Time one DPO step against the original DPO code, published FeDPO and TRL, and the federation around it: `make bench`.

    python scripts/bench.py shape=smollm2 batch=4 repeats=3 json=FILE

All steps run in one process and take turns on the same batches of real pairs, on one thread and by processor time, so
that a busy machine does not decide. Options:

    shape=smollm2      or gpt2, or tiny (the demo's model: seconds); random weights
    batch=4            pairs in a step
    repeats=3          batches
    threads=1          with more, wall time counts
    variants=all       or some of the table's names, with commas
    data_dir=FILE      HH pairs; without them the demo's dialogues are used
    federation=true    whether the demo runs with 2, 10 and 100 clients too; rounds=2 of them
    json=FILE          where everything measured is written
"""

import json
import os
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file, Python looks for modules beside it only


@dataclass(frozen=True)
class Options:
    """The command line."""

    shape: str = "smollm2"
    batch: int = 4
    repeats: int = 3
    threads: int = 1
    variants: str = "all"
    data_dir: str = str(ROOT.parent / "shared" / "data" / "hh" / "harmless-base-test.jsonl.gz")
    federation: bool = True
    rounds: int = 2
    json: str = ""


def main(arguments: list[str]) -> None:
    """Measure, print, and write JSON if asked."""
    try:
        options = read_options(arguments)
        # Before torch and transformers come in. Nothing is downloaded, and TRL need not report its use.
        os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        run(options)
    except ValueError as error:
        sys.exit(f"error: {error}")


def read_options(arguments: list[str]) -> Options:
    """The options that `arguments` give.

    Raises:
        ValueError: If one is unknown or cannot be read.
    """
    options, names = Options(), [field.name for field in fields(Options)]
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if name not in names or not equals:
            raise ValueError(f"unknown option {argument}; expected {', '.join(f'{name}=' for name in names)}")
        options = replace(options, **{name: _read(name, text, type(getattr(options, name)))})
    return options


def _read(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{name}={text}; expected true or false")
        return text == "true"
    if kind is int:
        if not text.isdecimal() or int(text) < 1:
            raise ValueError(f"{name}={text}; expected a whole number from 1 on")
        return int(text)
    return text


def run(options: Options) -> None:
    """Both parts."""
    # Only now: torch reads OMP_NUM_THREADS when it is imported.
    from scripts.benchmark import federation_bench, report, step_bench, variants

    chosen = variants.choose(options.variants)
    target = Path(options.json) if options.json else None
    if target is not None and not target.absolute().parent.is_dir():
        raise ValueError(f"json={options.json}: no folder {target.absolute().parent}")
    steps = step_bench.bench(
        options.shape,
        chosen,
        batch=options.batch,
        repeats=options.repeats,
        threads=options.threads,
        data_dir=Path(options.data_dir).expanduser(),
    )
    print(report.text(steps, options.shape, options.threads))
    found = {**report.as_json(steps), "options": vars(options)}
    if options.federation:
        rows = [federation_bench.measure(clients, options.rounds) for clients in federation_bench.CLIENTS]
        print("\n" + federation_bench.table(rows, options.rounds))
        found["federation"] = federation_bench.as_json(rows)
    if target is not None:
        target.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
