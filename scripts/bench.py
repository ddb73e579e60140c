"""Time one DPO step against the original DPO code, published FeDPO and TRL, and the federation around it: `make bench`.

    python scripts/bench.py shape=smollm2 batch=4 repeats=3 json=FILE

All steps run in one process and take turns on the same batches of real pairs. They run on one thread, and processor
time counts, so that a busy machine does not decide. Options:

    shape=smollm2      or gpt2, llama1b (1.2 billion weights), or tiny (the demo's model: seconds); weights are random
    batch=4            pairs in a step
    repeats=3          batches
    threads=1          with more threads, wall-clock time counts
    variants=all       or a list of the table's names
    data_dir=FILE      HH pairs; without them the demo's dialogues are used
    federation=true    the demo runs with 2, 10 and 100 clients too
    rounds=2           of each of these runs
    json=FILE          receives everything measured
"""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.options import HH, at_least, read


@dataclass(frozen=True)
class Options:
    """The command line."""

    shape: str = "smollm2"
    batch: int = 4
    repeats: int = 3
    threads: int = 1
    variants: list[str] = field(default_factory=lambda: ["all"])
    data_dir: str = str(HH)
    federation: bool = True
    rounds: int = 2
    json: str = ""


def main(arguments: Sequence[str]) -> None:
    """Measure, print, and write JSON if asked."""
    try:
        options = read(Options, arguments)
        at_least(1, batch=options.batch, repeats=options.repeats, threads=options.threads, rounds=options.rounds)
        # Before torch and transformers are imported. Nothing is downloaded, and TRL need not report its use.
        os.environ |= {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        run(options)
    except ValueError as error:
        sys.exit(f"error: {error}")


def run(options: Options) -> None:
    """Time the steps, then the federation.

    Raises:
        ValueError: If an option names something that does not exist.
    """
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
