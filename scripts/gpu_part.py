"""Carry out one part of gpu_check in this process: `gpu_part.py NAME FILE KEY=VALUE...`; gpu_check.py calls this."""

import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import torch

from scripts.gpu.cards import describe
from scripts.gpu.parts import Failed, Options, Report, Skip, choose
from scripts.options import read


def main(arguments: Sequence[str]) -> int:
    """Run the part and write what it finds to the file; return 0, also if it was skipped, or 1 if it failed."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # temporary files are removed then
    name, file, *typed = arguments
    options, (part,), report = read(Options, typed), choose([name]), Report(Path(file))
    report.add(machine=describe(torch.device("cpu" if options.dry else "cuda")))
    try:
        import_module(f"scripts.gpu.{part.module}").run(part, options, report)
    except Skip as reason:
        report.add(skipped=str(reason))
    except Failed as failure:
        print(failure)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
