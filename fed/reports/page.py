"""The page of a comparison: one HTML file that needs neither a network nor another file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from fed.config.explain import counted
from fed.reports import tables
from fed.reports.budgets import budgets
from fed.reports.differences import differing, environments
from fed.reports.page_clients import constants, heat_maps, partitions
from fed.reports.page_curves import curves
from fed.reports.page_differences import forest, verdict
from fed.reports.responses import final_samples
from fed.reports.runs import Method
from fed.reports.statistics import Difference, verdicts
from fed.reports.style import styles

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Findings:
    """The results of the runs, and the commands that ran them."""

    title: str
    rows: Sequence[tables.Row]
    differences: Mapping[tuple[str, str], Difference]
    commands: Sequence[str]  # as typed


def write_page(path: Path, methods: Sequence[Method], findings: Findings) -> None:
    """Write the page; it shows all text of models, data and users letter by letter."""
    path.write_text(_template().render(_context(methods, findings)), encoding="utf-8")


def _template() -> Any:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # JSON has no numbers that are not finite.
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    return environment.get_template(TEMPLATE)


def _context(methods: Sequence[Method], findings: Findings) -> Mapping[str, Any]:
    return {
        "plotly": get_plotlyjs(),
        "title": findings.title,
        "table": _table(findings.rows),
        "notes": [*tables.notes(findings.rows), *budgets(methods)],
        "verdict": verdict(findings.rows, findings.differences),
        "forest": forest(findings.differences),
        "verdicts": verdicts(findings.differences),
        "verdicts_say": tables.HOW,
        "commands": findings.commands,
        "names": [method.name for method in methods],
        "styles": styles([method.name for method in methods]),
        "runs": [run.folder for method in methods for run in method.runs],
        "dates": _dates(methods),
        "compared": _compared(methods),
        "has_several": any(len(method.runs) > 1 for method in methods),
        "has_single": any(len(method.runs) == 1 for method in methods),
        "seed": methods[0].runs[0].seed,
        "has_local": any(method.mode == "local" for method in methods),
        "curves": curves(methods),
        "has_time": any(point.seconds is not None for m in methods for run in m.runs for point in run.points),
        "partitions": partitions(methods),
        "heat_maps": heat_maps(methods),
        "constants": constants(methods),
        "samples": final_samples(methods),
        "differing": differing(methods),
        "environments": environments(methods),
    }


def _table(rows: Sequence[tables.Row]) -> list[dict[str, str]]:
    """Return the shown rows, by the heads of the columns; seeds only if methods differ in them."""
    shown = [tables.cells(row) for row in rows]
    if len({row.seeds for row in rows}) == 1:
        return [{head: cell for head, cell in cells.items() if head != "seeds"} for cells in shown]
    return shown


def _dates(methods: Sequence[Method]) -> str:
    days = sorted({str(run.environment["started"])[:10] for method in methods for run in method.runs})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _compared(methods: Sequence[Method]) -> str:
    """Return one line: methods, model, data, clients, rounds, test pairs and seeds."""
    run = methods[0].runs[0]
    seeds = sorted({run.seed for method in methods for run in method.runs})
    config = run.config
    names = ", ".join(method.name for method in methods)
    parts = [
        f"{names}: {config['model']['name_or_path']} on {', '.join(config['datasets'])}",
        counted(config["client_num_in_total"], "client"),
        counted(config["comm_round"], "round"),
        counted(len(run.test_pairs), "test pair"),
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}",
    ]
    return ", ".join(parts)
