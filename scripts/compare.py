r"""Compare federated with centralised DPO: run what is missing, then draw and tabulate all runs.

    python scripts/compare.py modes=[federated,centralized,local] strategies=[fedpo,fedavg,fedadam] seeds=[0,1,2] \
        exp_name=compare runs_at_a_time=1 KEY=VALUE...

Every KEY=VALUE goes to the runs that have a use for it. A strategy may have settings of its own:
`"strategies=[fedpo,fedpo decay_rate=1]"`. For each seed all methods train on the same pairs, as many in each round, and
are evaluated on the same test pairs. Finished runs are used again, and runs that were cut off are resumed. Results go
to output_dir/exp_name: compare.png, compare.csv, compare.md, report.html, and tensorboard/ for TensorBoard.
"""

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fed.config import explain, schema, usage
from fed.config.values import check_name
from fed.reports import compare_png, page, page_differences, statistics, tables
from fed.reports.runs import Method, Run
from fed.tracking import steps
from scripts.compare_runs import ROOT, Wanted, method_arguments, reads
from scripts.options import at_least, described, option, read, split
from scripts.runner import Runner

USES = (
    ('python scripts/compare.py exp_name=mine model=gpt2 "datasets=[hh]" comm_round=20', "the usual methods and seeds"),
    ('python scripts/compare.py "strategies=[fedpo,fedpo temp=1,fedavg]"', "one strategy with two settings"),
    ('python scripts/compare.py "modes=[federated,centralized]" "seeds=[0,1,2,3,4]"', "two modes, five seeds"),
)
RESULTS = (
    ("report.html", "everything on one page: curves, a table, and differences with 95 % intervals"),
    ("compare.md, .csv, .png", "the table as text and for programs, and the curves as a picture"),
    ("tensorboard/", "the curves of all runs, for TensorBoard"),
    ("runs/", "the folder of each run; finished runs are used again, and those cut off are resumed"),
)
DECIDED_HERE = ("mode", "strategy", "seed", "resume")  # keys that the comparison sets for each run


@dataclass(frozen=True)
class Options:
    """The comparison's own options."""

    modes: list[str] = option(
        ["federated", "centralized", "local"],
        "What is compared: a federation, one client with all pairs, every client alone.",
    )
    strategies: list[str] = option(
        ["fedpo", "fedavg"],
        'Strategies of the federation, with settings of their own if any: "strategies=[fedpo,fedpo temp=1]".',
    )
    seeds: list[int] = option([0, 1, 2], "Every method runs once with each; more seeds give narrower intervals.")
    exp_name: str = option("compare", "Name of the comparison, and of the folder of its results.")
    output_dir: str = option("data", "Results go to output_dir/exp_name.")
    runs_at_a_time: int = option(1, "Runs that compute at once, each in a process of its own.")


@dataclass(frozen=True)
class Comparison(Options):
    """The whole command line: the comparison's options and the settings of its runs."""

    typed: Sequence[str] = ()  # settings of all runs

    @property
    def folder(self) -> Path:
        """The folder for the results."""
        return Path(self.output_dir) / self.exp_name

    def methods(self) -> dict[str, list[str]]:
        """Return the arguments of each method, by its name."""
        found = {}
        for mode in self.modes:
            for text in self.strategies if mode == "federated" else [mode]:
                strategy, *variant = text.split()
                found[text] = method_arguments(mode, strategy, variant, self.typed)
        return found

    def wanted(self) -> list[Wanted]:
        """Return every run, method after method: later ones find the reference log-probs of the first of their seed."""
        runs = self.folder / "runs"
        return [
            Wanted(name, seed, (*arguments, f"seed={seed}"), runs / f"{_file_name(name)}-seed{seed}")
            for name, arguments in self.methods().items()
            for seed in self.seeds
        ]


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return 0, 1 if a run failed, 2 for a mistake, printed in one line, or 128 + signal."""
    sys.path[:0] = [os.getcwd(), str(ROOT)]  # a user's own modules, where main.py finds them too
    schema.register()
    if {"--help", "-h"} & {*arguments}:
        print(_page(), end="")
        return 0
    try:
        comparison = parse(arguments)
        wanted = comparison.wanted()
        steps.say(f"checking the settings of {len(wanted)} {'run' if len(wanted) == 1 else 'runs'}")  # takes seconds
        for one in wanted:
            _ = one.config  # composed, and so checked, before anything runs
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        print(f"error: {explain.in_one_line(explain.refusal(error))}", file=sys.stderr)
        return 2
    again = "python scripts/compare.py " + " ".join(map(shlex.quote, arguments))
    try:
        failed = Runner(comparison.runs_at_a_time).run(wanted)
    except KeyboardInterrupt as interrupt:
        print(f"stopped; finished runs are kept; continue with: {again}", file=sys.stderr)
        return 128 + int(interrupt.args[0])
    if failed:
        print(
            f"error: {', '.join(failed)} failed, see above; finished runs are kept; continue with: {again}",
            file=sys.stderr,
        )
        return 1
    write(comparison, wanted, again)
    return 0


def _page() -> str:
    """Return the page of `--help`."""
    title = "Options, each with its default; every other KEY=VALUE is a setting of the runs, see main.py --help"
    return usage.page_of(
        ("Usage: python scripts/compare.py OPTION=VALUE ... KEY=VALUE ...", ()),
        ("Runs every method with every seed on the same pairs and the same budget, and draws the differences.", ()),
        ("Uses", USES),
        (title, described(Options)),
        ("Results, in output_dir/exp_name", RESULTS),
        ("The rest", (("docs/comparing.md", "what is compared, how, and how to read it"),)),
    )


def parse(arguments: Sequence[str]) -> Comparison:
    """Return the command line as values.

    Raises:
        ValueError: If an argument is refused; it says what was expected, and the way out.
    """
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or key.startswith("-"):
            raise ValueError(f"{argument!r} is not a setting; expected key=value, e.g. modes=[federated,centralized]")
        if key in DECIDED_HERE:
            raise ValueError(f"{key} is refused: a comparison gives each run its own; use modes, strategies, seeds")
    own, typed = split(Options, arguments)
    comparison = Comparison(**vars(read(Options, own)), typed=typed)
    _check_options(comparison)
    if "federated" not in comparison.modes and any(argument.startswith("strategies=") for argument in own):
        raise ValueError(
            f"strategies has no effect with modes={list(comparison.modes)}; add federated, or leave it out"
        )
    _check_settings(comparison)
    return comparison


def _check_options(comparison: Comparison) -> None:
    lists: dict[str, Sequence[object]] = {
        "modes": comparison.modes,
        "strategies": comparison.strategies,
        "seeds": comparison.seeds,
    }
    for key, found in lists.items():
        if not found or "" in found or len(set(found)) < len(found):
            given, example = (
                ",".join(map(str, found)),
                [text for text in found if text != ""] or getattr(Options(), key),
            )
            raise ValueError(
                f"{key}=[{given}] is refused; expected a list without repetitions, e.g. {key}=[{example[0]}]"
            )
    known = schema.every_key()["mode"].choices
    for mode in comparison.modes:
        if mode not in known:
            near = explain.nearest(mode, known)
            raise ValueError(f"modes: {mode} is unknown; expected {explain.listed(known)}{near}")
    for seed in comparison.seeds:
        at_least(0, seeds=seed)
    at_least(1, runs_at_a_time=comparison.runs_at_a_time)
    check_name(comparison.exp_name)


def _check_settings(comparison: Comparison) -> None:
    used = [(mode, text.split()[0]) for mode in comparison.modes for text in comparison.strategies]
    for argument in comparison.typed:
        key = argument.lstrip("+~").partition("=")[0]
        if not any(reads(mode, strategy, key) for mode, strategy in used):
            raise ValueError(f"{key} has no effect on any of these methods; leave it out")
        if key == "clients_per_round" and "local" in comparison.modes:
            raise ValueError(
                "clients_per_round has no counterpart in mode=local, where every client trains in every round, so that "
                "budgets would differ; use modes=[federated,centralized]"
            )


def _file_name(method: str) -> str:
    """Return the method's name as a folder's name, which cannot hold every character."""
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in method)


def write(comparison: Comparison, wanted: Sequence[Wanted], command: str) -> None:
    """Draw and tabulate the finished runs in the comparison's folder, and print what was found."""
    steps.say("drawing the report")
    found = [(one, run) for one in wanted if (run := one.found()) is not None]
    methods = [Method(name, [run for one, run in found if one.method == name]) for name in comparison.methods()]
    rows = tables.rows(methods)
    differences = statistics.differences(methods)
    commands = [command, *(shlex.join(["python", *one.command(None)]) for one in wanted)]
    text = tables.markdown(methods, differences, commands, title=comparison.exp_name)
    folder = comparison.folder
    compare_png.draw(methods, folder / "compare.png")
    tables.write_csv(methods, folder / "compare.csv")
    (folder / "compare.md").write_text(text, encoding="utf-8")
    page.write_page(
        folder / "report.html",
        methods,
        page.Findings(comparison.exp_name, rows, differences, commands),
    )
    _link_events(folder / "tensorboard", {one.name: run for one, run in found})
    width = max(len(row.method) for row in rows)
    for row in rows:
        print(f"{row.method:{width}}  accuracy {row.accuracy}")
    print(f"{folder}: compare.md has all metrics, differences and commands; compare.csv, compare.png")
    print(f"curves of all runs: tensorboard --logdir {folder / 'tensorboard'}")
    print(page_differences.verdict(rows, differences))
    print((folder / "report.html").resolve())


def _link_events(folder: Path, runs: Mapping[str, Run]) -> None:
    """Link the server's curves of each run under the run's name, so that TensorBoard overlays them."""
    folder.mkdir(exist_ok=True)
    for name, run in runs.items():
        if not (events := run.folder / "tensorboard" / "Server").is_dir():
            continue
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(events, folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
