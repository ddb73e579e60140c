"""Measure the cost of a round with 10 to 10,000 clients of which few are sampled: seconds, memory, files and bytes.

    python scripts/scale.py clients=10,100,1000,10000 rounds=5 json=FILE KEY=VALUE...

Each number of clients is run in a process of its own, on one thread, with the demo's model. A client has as many pairs
and as much work whatever the number of clients. Dialogues are made up as the demo's are, one conversation per pair.
Options:

    clients=10,100,1000,10000   simulated clients
    share=0.01                  the share of them that is sampled in a round, at least 2 clients
    pairs=8                     of each client
    rounds=5                    at least 2
    json=FILE                   receives everything measured

Every other KEY=VALUE is one of main.py's, e.g. client_optimizer=persist.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fed.config.arguments import check_arguments
from fed.data.dialogues import dialogues
from fed.data.rows import ASSISTANT, HUMAN
from scripts.options import at_least, read, split

ROOT = Path(__file__).resolve().parent.parent
SERVER, TEST = 64, 64  # pairs of the server, and pairs to test on
MEGA = 1e6


@dataclass(frozen=True)
class Options:
    """The command line."""

    clients: list[int] = field(default_factory=lambda: [10, 100, 1000, 10_000])
    share: float = 0.01
    pairs: int = 8
    rounds: int = 5
    json: str = ""


@dataclass(frozen=True)
class Row:
    """The measurements of one run. Seconds are processor time unless named wall; memory and sizes are bytes."""

    clients: int
    sampled: int
    setup: dict[str, float]
    setup_seconds: float
    round_wall: float
    round_seconds: float
    seconds_per_client: float
    memory_imported: int
    memory_before: int
    memory_peak: int
    memory_growth: float  # from round to round, without pages of files
    run_folder: int
    checkpoint: int
    sent: int
    received: int


def main(arguments: Sequence[str]) -> None:
    """Measure, print, and write JSON if asked."""
    try:
        own, settings = split(Options, arguments)
        if flags := [argument for argument in settings if "=" not in argument]:
            raise ValueError(f"{flags[0]!r} is not a setting; expected KEY=VALUE")
        options = checked(read(Options, own))
        check_arguments(settings)
    except ValueError as error:
        sys.exit(f"error: {error}")
    rows = []
    for clients in options.clients:
        rows.append(measure(clients, options, settings))
        print(("" if len(rows) > 1 else f"{HEAD}\n") + line(rows[-1]), flush=True)
    print(f"\n{setup_table(rows)}")
    if options.json:
        found = {"options": asdict(options), "settings": settings, "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


def checked(options: Options) -> Options:
    """Return the options if they are in range.

    Raises:
        ValueError: If one is not.
    """
    for clients in options.clients:
        at_least(2, clients=clients)
    at_least(1, pairs=options.pairs)
    at_least(2, rounds=options.rounds)
    if not 0 < options.share <= 1:
        raise ValueError(f"share={options.share} is out of range; expected a number above 0, at most 1")
    return options


def write_dialogues(folder: Path, train: int) -> None:
    """Write `train.jsonl` and `test.jsonl`: the demo's dialogues over and over, with a number in each question."""
    made = [dialogue for part in dialogues(0) for dialogue in part]
    for name, numbers in (("train", range(train)), ("test", range(train, train + TEST))):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number in numbers:
                one = made[number % len(made)]
                prompt = f"{HUMAN} ({number}) {one.question}{ASSISTANT}"
                fields = {"prompt": prompt, "chosen": one.kind, "rejected": one.rude, "group": one.topic}
                file.write(json.dumps(fields) + "\n")


def measure(clients: int, options: Options, settings: Sequence[str]) -> Row:
    """Measure one run in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "data").mkdir()
        write_dialogues(folder / "data", clients * options.pairs + SERVER)
        command = [sys.executable, "scripts/scale_run.py", str(folder / "measured.json")]
        command += [*_given(clients, options, folder), *settings]
        quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL, env=os.environ | quiet)
        if done.returncode:  # it has said why
            sys.exit(done.returncode)
        measured = json.loads((folder / "measured.json").read_text())
        (summary,) = (folder / "out").glob("*/*/summary.json")
        return _row(clients, options, measured, summary.parent)


def _sampled(clients: int, options: Options) -> int:
    return max(2, round(clients * options.share))


def _given(clients: int, options: Options, folder: Path) -> list[str]:
    """Return main.py's settings for a run in the folder."""
    sampled, server = _sampled(clients, options), SERVER / (clients * options.pairs + SERVER)
    return [
        *[f"client_num_in_total={clients}", f"clients_per_round={sampled}", f"comm_round={options.rounds}"],
        *[f"server_fraction={server}", f"n_eval_examples={SERVER}", f"n_test_examples={TEST}"],
        *["client_eval_fraction=0", f"batch_size={options.pairs}", "datasets=[files]", f"data_dir={folder / 'data'}"],
        *[f"output_dir={folder / 'out'}", f"cache_dir={folder / 'cache'}"],
    ]


def _row(clients: int, options: Options, measured: dict[str, Any], run: Path) -> Row:
    sampled, rounds = _sampled(clients, options), options.rounds
    marks = [measured["rounds"][str(number)] for number in range(1, rounds + 2)]
    steps = list(itertools.pairwise(marks))
    seconds = statistics.median(after["cpu"] - before["cpu"] for before, after in steps)
    setup_seconds = marks[0]["cpu"] - measured["imported"]["cpu"]
    travelled = json.loads((run / "summary.json").read_text())["bytes"]
    return Row(
        clients=clients,
        sampled=sampled,
        setup=measured["setup"] | {"other": setup_seconds - sum(measured["setup"].values())},
        setup_seconds=setup_seconds,
        round_wall=statistics.median(after["wall"] - before["wall"] for before, after in steps),
        round_seconds=seconds,
        seconds_per_client=seconds / sampled,
        memory_imported=measured["imported"]["memory"],
        memory_before=marks[0]["memory"],
        memory_peak=max(mark["memory"] for mark in marks),
        memory_growth=(marks[-1]["own"] - marks[1]["own"]) / max(rounds - 1, 1),
        run_folder=_size(run),
        checkpoint=_size(run / "checkpoints" / f"round-{rounds}"),
        sent=travelled["sent"] // rounds,
        received=travelled["received"] // rounds,
    )


def _size(folder: Path) -> int:
    """Return the bytes of all files; a file with several names counts once."""
    found = {(stat := path.stat()).st_ino: stat.st_size for path in folder.rglob("*") if path.is_file()}
    return sum(found.values())


HEAD = (
    f"{'clients':>7} {'sampled':>7} {'wall s':>7} {'CPU s':>7} {'ms each':>8} {'before MB':>9} {'most MB':>8} "
    f"{'+MB/round':>9} {'run MB':>7} {'kept MB':>7} {'sent MB':>8} {'got MB':>7}"
)


def line(row: Row) -> str:
    """Return the row as a line of the printed table."""
    return (
        f"{row.clients:>7} {row.sampled:>7} {row.round_wall:>7.2f} {row.round_seconds:>7.2f} "
        f"{1e3 * row.seconds_per_client:>8.1f} {row.memory_before / MEGA:>9.0f} {row.memory_peak / MEGA:>8.0f} "
        f"{row.memory_growth / MEGA:>9.2f} {row.run_folder / MEGA:>7.2f} {row.checkpoint / MEGA:>7.2f} "
        f"{row.sent / MEGA:>8.2f} {row.received / MEGA:>7.2f}"
    )


def setup_table(rows: list[Row]) -> str:
    """Return the table of the seconds before the first round."""
    phases = list(rows[0].setup)
    lines = [f"{'clients':>7} " + " ".join(f"{phase:>10}" for phase in (*phases, "all"))]
    for row in rows:
        values = [*(row.setup.get(phase, 0.0) for phase in phases), row.setup_seconds]
        lines.append(f"{row.clients:>7} " + " ".join(f"{value:>10.2f}" for value in values))
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
