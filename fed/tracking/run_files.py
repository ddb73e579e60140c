"""The names of the files in a run's folder, and the folders that are a run's."""

import glob
from pathlib import Path

CONFIG = "config.yaml"  # the resolved settings
ENVIRONMENT = "environment.json"  # versions, machine, command line
PARTITION_FILE = "partition.json"  # the rows of each client
METRICS = "metrics.jsonl"  # see fed/tracking/metrics.py
MARGINS = "margins.jsonl"  # the reward margin of each test pair, by evaluation
TIMING = "timing.jsonl"  # the wall time of each evaluation; in a file of its own, since no two runs take the same
SAMPLES = "samples.jsonl"  # responses drawn during evaluation
FAILURES = "failures.log"  # tracebacks of clients that were left out
SUMMARY = "summary.json"
CURVES = "curves.png"
PARTITION_PICTURE = "partition.png"
TENSORBOARD = "tensorboard"  # a folder of event files
CHECKPOINTS = "checkpoints"  # a folder of round-1/, round-2/, ... and best/
POLICY = "policy"  # a folder with the trained model
LATEST = "latest"  # in place of a folder: that of the newest run


def check_resumed(resume: str, output_dir: str, exp_name: str) -> None:
    """Refuse to resume where there is no run.

    Raises:
        ValueError: If so.
    """
    if resume == LATEST:
        runs_of(output_dir, exp_name)
    else:
        check_run(Path(resume))


def check_run(folder: Path) -> None:
    """Refuse to resume a folder that has no settings.

    Raises:
        ValueError: If so.
    """
    if not (folder / CONFIG).is_file():
        raise ValueError(
            f"resume={folder} is not the folder of a run: it has no {CONFIG}; give the folder "
            "output_dir/exp_name/date_time"
        )


def runs_of(output_dir: str, exp_name: str) -> list[Path]:
    """Return the folders of an experiment's runs, of which `resume=latest` is one.

    Raises:
        ValueError: If there is none.
    """
    found = [path.parent for path in Path(output_dir).glob(f"{glob.escape(exp_name)}/*/{CONFIG}")]
    if not found:
        raise ValueError(f"resume=latest finds no run in {Path(output_dir, exp_name)}; give exp_name or its folder")
    return found
