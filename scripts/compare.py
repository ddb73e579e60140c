r"""Federated against centralised DPO, in one command: runs what is missing, then says what all runs say together.

    python scripts/compare.py modes=[federated,centralized,local] strategies=[fedpo,fedavg,fedadam] seeds=[0,1,2] \
        exp_name=compare runs_at_a_time=1 KEY=VALUE...

Every KEY=VALUE goes to those runs that have a use for it. A strategy may have settings of its own:
`"strategies=[fedpo,fedpo decay_rate=1]"`. For each seed all methods train on the same pairs, as many in each round, and
are evaluated on the same test pairs. What is finished is used again, what was cut off goes on. Results go to
output_dir/exp_name: compare.png, compare.csv, compare.md, report.html; TensorBoard: its folder tensorboard/.
"""

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
sys.path.insert(0, os.getcwd())
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fed.config import explain, schema
from fed.reports import compare_png, page, statistics, tables
from fed.reports.runs import Method, Run
from scripts.compare_runs import Runner, Wanted, method_arguments, reads

USED_BY_ALL = ("mode", "strategy", "seed", "resume")  # what the comparison itself decides


@dataclass(frozen=True)
class Asked:
    """The command line."""

    modes: Sequence[str] = ("federated", "centralized", "local")
    strategies: Sequence[str] = ("fedpo", "fedavg")
    seeds: Sequence[int] = (0, 1, 2)
    exp_name: str = "compare"
    output_dir: str = "data"
    runs_at_a_time: int = 1
    typed: Sequence[str] = field(default_factory=list)  # of all runs

    @property
    def folder(self) -> Path:
        """Where results go."""
        return Path(self.output_dir) / self.exp_name

    def methods(self) -> dict[str, list[str]]:
        """Arguments of each method, by its name."""
        found = {}
        for mode in self.modes:
            for text in self.strategies if mode == "federated" else [mode]:
                strategy, *variant = text.split()
                found[text] = method_arguments(mode, strategy, variant, self.typed)
        return found

    def wanted(self) -> list[Wanted]:
        """Every run, method after method: later ones find the reference log-probs of the first one of their seed."""
        runs = self.folder / "runs"
        return [
            Wanted(name, seed, (*arguments, f"seed={seed}"), runs / f"{_file_name(name)}-seed{seed}")
            for name, arguments in self.methods().items()
            for seed in self.seeds
        ]


def main(arguments: Sequence[str]) -> int:
    """Run the command line; exit code 0, 1 if a run failed, 2 for a mistake told in one line, 128 + signal."""
    schema.register()
    try:
        asked = parse(arguments)
        wanted = asked.wanted()
        for one in wanted:
            _ = one.config  # composed, and so checked, before anything runs
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        known = isinstance(error, ValueError) and not isinstance(error, OmegaConfBaseException)
        message = str(error) if known else explain.explain(f"{error}\n{error.__cause__ or ''}")
        print(f"error: {' '.join(message.split())}", file=sys.stderr)
        return 2
    again = "python scripts/compare.py " + " ".join(map(shlex.quote, arguments))
    try:
        failed = Runner(asked.runs_at_a_time).run(wanted)
    except KeyboardInterrupt as interrupt:
        print(f"stopped; what was done is kept, go on with: {again}", file=sys.stderr)
        return 128 + int(interrupt.args[0])
    if failed:
        print(f"error: {', '.join(failed)} failed, see above; go on with: {again}", file=sys.stderr)
        return 1
    write(asked, wanted, again)
    return 0


def parse(arguments: Sequence[str]) -> Asked:
    """The command line as values.

    Raises:
        ValueError: Naming the argument, what was expected, and the way out.
    """
    own: dict[str, object] = {}
    typed = []
    parsers: dict[str, Callable[[str], object]] = {
        "modes": lambda text: _listed("modes", text, schema.every_key()["mode"].choices),
        "strategies": lambda text: _listed("strategies", text),
        "seeds": lambda text: [_number("seeds", seed, 0) for seed in _listed("seeds", text)],
        "runs_at_a_time": lambda text: _number("runs_at_a_time", text, 1),
        "exp_name": str,
        "output_dir": str,
    }
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key.startswith("-"):
            raise ValueError(f"{argument!r} is no setting; expected key=value, e.g. modes=[federated,centralized]")
        if key in USED_BY_ALL:
            raise ValueError(f"{key} is refused: a comparison gives each run its own; use modes, strategies, seeds")
        if key in parsers:
            own[key] = parsers[key](value)
        else:
            typed.append(argument)
    asked = Asked(**own, typed=typed)  # type: ignore[arg-type]
    _check(asked, given=own.keys())
    return asked


def _check(asked: Asked, given: object) -> None:
    if "federated" not in asked.modes and "strategies" in given:  # type: ignore[operator]
        raise ValueError(f"strategies has no effect with modes={list(asked.modes)}; add federated, or leave it out")
    used = [(mode, text.split()[0]) for mode in asked.modes for text in asked.strategies]
    for argument in asked.typed:
        key = argument.lstrip("+~").partition("=")[0]
        if not any(reads(mode, strategy, key) for mode, strategy in used):
            raise ValueError(f"{key} has no effect on any of these methods; leave it out")
        if key == "clients_per_round" and "local" in asked.modes:
            raise ValueError(
                "clients_per_round has no equal in mode=local, where every client trains in every round, so that "
                "budgets would differ; use modes=[federated,centralized]"
            )


def _listed(key: str, text: str, known: Sequence[str] | None = None) -> list[str]:
    found = [part.strip() for part in text.strip().removeprefix("[").removesuffix("]").split(",") if part.strip()]
    if not found or len(set(found)) < len(found):
        raise ValueError(
            f"{key}={text}; expected a list without repetitions, e.g. {key}=[{found[0] if found else 'a'}]"
        )
    for name in found:
        if known is not None and name not in known:
            nearest = explain.nearest(name, known)
            raise ValueError(f"{key}={text}: {name} is unknown; expected {explain.listed(known)}{nearest}")
    return found


def _number(key: str, text: str, least: int) -> int:
    if not text.isdigit() or int(text) < least:
        raise ValueError(f"{key}: {text} is no whole number of at least {least}")
    return int(text)


def _file_name(method: str) -> str:
    """The method's name without what a folder's name cannot hold."""
    return "".join(c if c.isalnum() or c in ".-_" else "-" for c in method)


def write(asked: Asked, wanted: Sequence[Wanted], command: str) -> None:
    """Write what the finished runs say into the comparison's folder."""
    found = [(one, run) for one in wanted if (run := one.found()) is not None]
    methods = [Method(name, [run for one, run in found if one.method == name]) for name in asked.methods()]
    rows = tables.rows(methods)
    differences = statistics.differences(methods)
    commands = [command, *(shlex.join(["python", *one.command(None)]) for one in wanted)]
    text = tables.markdown(methods, differences, commands, title=asked.exp_name)
    folder = asked.folder
    compare_png.draw(methods, folder / "compare.png")
    tables.write_csv(methods, folder / "compare.csv")
    (folder / "compare.md").write_text(text, encoding="utf-8")
    page.write_page(
        folder / "report.html",
        methods,
        page.Findings(asked.exp_name, rows, differences, commands),
    )
    _link_events(folder / "tensorboard", {one.name: run for one, run in found})
    print(text)
    print(f"{folder}: compare.png, compare.csv, compare.md, report.html")
    print(f"curves of all runs: tensorboard --logdir {folder / 'tensorboard'}")


def _link_events(folder: Path, runs: Mapping[str, Run]) -> None:
    """The server's curves of each run under the run's name, so that TensorBoard overlays them."""
    folder.mkdir(exist_ok=True)
    for name, run in runs.items():
        if not (events := run.folder / "tensorboard" / "Server").is_dir():
            continue
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(events, folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
