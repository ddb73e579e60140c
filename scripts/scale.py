"""What a round costs with 10 to 10,000 clients of which few are sampled: seconds, memory, files and bytes.

    python scripts/scale.py clients=10,100,1000,10000 rounds=5 json=FILE KEY=VALUE...

Each number of clients is run in a process of its own, on one thread: the demo's model, as many pairs and as much work
for each client whatever their number. Dialogues are made up as the demo's are, one conversation a pair. Options:

    clients=10,100,1000,10000   simulated clients
    share=0.01                  of them are sampled in a round, at least 2
    pairs=8                     of each client
    rounds=5                    at least 2
    json=FILE                   where everything measured is written

Every other KEY=VALUE is one of main.py's, e.g. client_optimizer=persist.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run as a file, Python looks for modules beside it only

from fed.data.dialogues import dialogues  # noqa: E402
from fed.data.rows import ASSISTANT, HUMAN  # noqa: E402

SERVER, TEST = 64, 64  # pairs of the server's, and to test on
MEGA = 1e6


@dataclass(frozen=True)
class Options:
    """The command line."""

    clients: str = "10,100,1000,10000"
    share: str = "0.01"
    pairs: str = "8"
    rounds: str = "5"
    json: str = ""


@dataclass(frozen=True)
class Row:
    """One run. Seconds are the processor's unless named wall; memory and sizes are bytes."""

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


def main(arguments: list[str]) -> None:
    """Measure, print, and write JSON if asked."""
    try:
        options, settings = read_options(arguments)
        numbers = [int(number) for number in options.clients.split(",")]
        share, pairs, rounds = float(options.share), int(options.pairs), int(options.rounds)
    except ValueError as error:
        sys.exit(f"error: {error}")
    rows = []
    for clients in numbers:
        rows.append(measure(clients, max(2, round(clients * share)), pairs, rounds, settings))
        print(("" if len(rows) > 1 else f"{HEAD}\n") + line(rows[-1]), flush=True)
    print(f"\n{setup_table(rows)}")
    if options.json:
        found = {"options": asdict(options), "settings": settings, "rows": [asdict(row) for row in rows]}
        Path(options.json).write_text(json.dumps(found, indent=2) + "\n")


def read_options(arguments: list[str]) -> tuple[Options, list[str]]:
    """The options that `arguments` give, and main.py's settings.

    Raises:
        ValueError: If one is no KEY=VALUE.
    """
    options, names, settings = Options(), [field.name for field in fields(Options)], []
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if not equals:
            raise ValueError(f"unknown option {argument}; expected KEY=VALUE")
        if name in names:
            options = replace(options, **{name: text})
        else:
            settings.append(argument)
    return options, settings


def write_dialogues(folder: Path, train: int) -> None:
    """`train.jsonl` and `test.jsonl`: so many of the demo's dialogues, over and over, with a number in the question."""
    made = [dialogue for part in dialogues(0) for dialogue in part]
    for name, numbers in (("train", range(train)), ("test", range(train, train + TEST))):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for number in numbers:
                one = made[number % len(made)]
                prompt = f"{HUMAN} ({number}) {one.question}{ASSISTANT}"
                fields = {"prompt": prompt, "chosen": one.kind, "rejected": one.rude, "group": one.topic}
                file.write(json.dumps(fields) + "\n")


def measure(clients: int, sampled: int, pairs: int, rounds: int, settings: list[str]) -> Row:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, train = Path(scratch), clients * pairs + SERVER
        (folder / "data").mkdir()
        write_dialogues(folder / "data", train)
        given = [f"client_num_in_total={clients}", f"clients_per_round={sampled}", f"comm_round={rounds}"]
        given += [f"server_fraction={SERVER / train}", f"n_eval_examples={SERVER}", f"n_test_examples={TEST}"]
        given += ["client_eval_fraction=0", f"batch_size={pairs}", "datasets=[jsonl]", f"data_dir={folder / 'data'}"]
        given += [f"output_dir={folder / 'out'}", f"cache_dir={folder / 'cache'}", *settings]
        command = [sys.executable, "scripts/scale_run.py", str(folder / "measured.json"), *given]
        quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ | quiet)
        measured = json.loads((folder / "measured.json").read_text())
        (summary,) = (folder / "out").glob("*/*/summary.json")
        return _row(clients, sampled, rounds, measured, summary.parent)


def _row(clients: int, sampled: int, rounds: int, measured: dict[str, Any], run: Path) -> Row:
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
    """Bytes of all files, a file of several names once."""
    found = {(stat := path.stat()).st_ino: stat.st_size for path in folder.rglob("*") if path.is_file()}
    return sum(found.values())


HEAD = (
    f"{'clients':>7} {'sampled':>7} {'wall s':>7} {'CPU s':>7} {'ms each':>8} {'before MB':>9} {'most MB':>8} "
    f"{'+MB/round':>9} {'run MB':>7} {'kept MB':>7} {'sent MB':>8} {'got MB':>7}"
)


def line(row: Row) -> str:
    """A round as a person reads it."""
    return (
        f"{row.clients:>7} {row.sampled:>7} {row.round_wall:>7.2f} {row.round_seconds:>7.2f} "
        f"{1e3 * row.seconds_per_client:>8.1f} {row.memory_before / MEGA:>9.0f} {row.memory_peak / MEGA:>8.0f} "
        f"{row.memory_growth / MEGA:>9.2f} {row.run_folder / MEGA:>7.2f} {row.checkpoint / MEGA:>7.2f} "
        f"{row.sent / MEGA:>8.2f} {row.received / MEGA:>7.2f}"
    )


def setup_table(rows: list[Row]) -> str:
    """Seconds before the first round."""
    phases = list(rows[0].setup)
    lines = [f"{'clients':>7} " + " ".join(f"{phase:>10}" for phase in (*phases, "all"))]
    for row in rows:
        values = [*(row.setup.get(phase, 0.0) for phase in phases), row.setup_seconds]
        lines.append(f"{row.clients:>7} " + " ".join(f"{value:>10.2f}" for value in values))
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])
