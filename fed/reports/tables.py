"""A comparison in numbers: a row for each method, every evaluation as CSV, and the text of `compare.md`."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from fed.reports.budgets import budgets
from fed.reports.runs import Method, Point, Run
from fed.reports.statistics import Difference, Mean, Share, accuracy, mean_and_se, verdicts

METRICS = ("margin", "loss", "log_ratio")
NEAR = 0.95  # share of the centralised run's final accuracy
# The first columns of compare.csv; other recorded metrics follow.
COLUMNS = (
    "method",
    "mode",
    "seed",
    "round",
    "pairs",
    "seconds",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "margin",
    "loss",
    "log_ratio",
    "ties",
)
MEANING = (
    "Accuracy, margin, loss and log-ratio: on the test pairs after the last round. Log-ratio: mean of log(reference / "
    "policy) over held-out responses, in nats.",
    "At validation's best: test accuracy after the round with the highest validation accuracy. Best on test: in the "
    "round that was best on the test pairs themselves, so it flatters.",
    "Pairs to 95 %: pairs trained until accuracy was 95 % of the centralised run's final accuracy, for the same seed.",
    "Wall-clock and traffic (bytes to and from the server): of a whole run, means over seeds.",
)
HOW = (
    "Accuracy of the first method minus that of the second on the same test pairs, after the last round that both "
    "have, with a 95 % interval over conversations and, with several seeds, over seeds. With one seed it says nothing "
    "about other seeds. Too few seeds to say: these runs differ, but so unequally that others may not. Of many "
    "intervals, some exclude 0 by chance."
)


@dataclass(frozen=True)
class Row:
    """The results of a method on the test pairs. Means are over seeds; in mode=local first over clients."""

    method: str
    mode: str
    seeds: tuple[int, ...]
    num_pairs: int  # test pairs of the first run
    accuracy: Mean | Share  # after the last round, like margin, loss and log-ratio
    chosen: Mean | Share | None  # after the round that each run's validation pairs chose; None if a run has none
    best: Mean | Share  # after the round that was best on each run's test pairs, round 0 excluded
    margin: Mean
    loss: Mean
    log_ratio: Mean | None  # None: of reward models
    clients_sd: float | None  # mode=local: standard deviation of the final accuracy over clients
    pairs_to_near: float | None  # trained until NEAR of the final accuracy of the centralised run of the same seed
    num_near: int  # runs that came so near; the mean is over them
    num_aims: int  # runs whose seed has a centralised run
    wall_seconds: float
    traffic: float | None  # bytes to and from the server; None if nothing travels


def rows(methods: Sequence[Method]) -> list[Row]:
    """Return a row for each method.

    With one seed an accuracy has Wilson's interval, and other metrics have neither that nor a standard error.

    Raises:
        ValueError: If a run was never evaluated after training.
    """
    central = next((method.runs for method in methods if method.mode == "centralized"), ())
    aims = {run.seed: NEAR * _trained(run)[-1].metrics["accuracy"] for run in central}
    return [_row(method, aims) for method in methods]


def write_csv(methods: Sequence[Method], path: Path) -> None:
    """Write a line for each evaluation on the test pairs; `<metric>_sd` is a standard deviation over clients."""
    records = [_record(method, run, point) for method in methods for run in method.runs for point in run.points]
    more = [key for key in dict.fromkeys(key for record in records for key in record) if key not in COLUMNS]
    more.sort(key=lambda key: key.endswith("_sd"))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*COLUMNS, *more], lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)


def markdown(
    methods: Sequence[Method],
    differences: Mapping[tuple[str, str], Difference],
    commands: Sequence[str],
    *,
    title: str = "Comparison",
) -> str:
    """Return the text of `compare.md`: the table, paired differences, the budgets and the commands."""
    found = rows(methods)
    paired = [f"- {verdict}" for verdict in verdicts(differences)]
    shown = [cells(row) for row in found]
    lines = [[*shown[0]], ["---"] * len(shown[0]), *(list(line.values()) for line in shown)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    blocks = [
        [f"# {title}"],
        table,
        [f"- {note}" for note in notes(found)],
        *([["## Paired differences in accuracy"], [HOW], paired] if paired else []),
        ["## Budgets"],
        [f"- {line}" for line in budgets(methods)],
        ["## Commands"],
        ["```sh", *commands, "```"],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def cells(row: Row) -> dict[str, str]:
    """Return the row as the table shows it, by the heads of its columns."""
    return {
        "method": row.method,
        "mode": row.mode,
        "seeds": ", ".join(map(str, row.seeds)),
        "accuracy": str(row.accuracy),
        "at validation's best": "-" if row.chosen is None else str(row.chosen),
        "best on test": str(row.best),
        "margin": str(row.margin),
        "loss": str(row.loss),
        "log-ratio": "-" if row.log_ratio is None else str(row.log_ratio),
        "pairs to 95 %": _pairs_to_near(row),
        "wall-clock": _duration(row.wall_seconds),
        "traffic": "-" if row.traffic is None else _size(row.traffic),
    }


def notes(found: Sequence[Row]) -> list[str]:
    """Return the notes below the table."""
    several = [row for row in found if len(row.seeds) > 1]
    wilson = [row for row in found if any(isinstance(one, Share) for one in (row.accuracy, row.chosen, row.best))]
    said = []
    if several:
        said.append(f"± of {_named(several)}: standard error over seeds, sd / sqrt(n).")
    if wilson:
        tested = ", ".join(f"{count:,}" for count in sorted({row.num_pairs for row in wilson}))
        said.append(f"[ ] of {_named(wilson)}: 95 % Wilson interval of an accuracy on one seed's {tested} test pairs.")
    for row in found:
        if row.clients_sd is not None:
            spread = f"the standard deviation of its accuracy over clients is {row.clients_sd:.3f}"
            said.append(f"{row.method}: means over clients that train alone; {spread}.")
    return [*said, *MEANING]


def _row(method: Method, aims: Mapping[int, float]) -> Row:
    points = [_trained(run) for run in method.runs]
    num_pairs = len(method.runs[0].test_pairs)
    last = {name: [own[-1].metrics.get(name, math.nan) for own in points] for name in ("accuracy", *METRICS)}
    spreads = [own[-1].spread["accuracy"] for own in points if "accuracy" in own[-1].spread]
    near = [_pairs_until(own, aims[run.seed]) for run, own in zip(method.runs, points, strict=True) if run.seed in aims]
    reached = [pairs for pairs in near if pairs is not None]
    traffic = [run.bytes_sent for run in method.runs if run.bytes_sent is not None]
    chosen = [run.chosen_accuracy for run in method.runs]
    known = [found for found in chosen if found is not None]
    return Row(
        method=method.name,
        mode=method.mode,
        seeds=tuple(run.seed for run in method.runs),
        num_pairs=num_pairs,
        accuracy=accuracy(last["accuracy"], num_pairs),
        chosen=accuracy(known, num_pairs) if len(known) == len(chosen) else None,
        best=accuracy([max(point.metrics["accuracy"] for point in own) for own in points], num_pairs),
        margin=mean_and_se(last["margin"]),
        loss=mean_and_se(last["loss"]),
        log_ratio=mean_and_se(last["log_ratio"]) if any("log_ratio" in own[-1].metrics for own in points) else None,
        clients_sd=fmean(spreads) if spreads else None,
        pairs_to_near=fmean(reached) if reached else None,
        num_near=len(reached),
        num_aims=len(near),
        wall_seconds=fmean(run.summary["wall_seconds"] for run in method.runs),
        traffic=fmean(traffic) if traffic else None,
    )


def _trained(run: Run) -> list[Point]:
    """Return the evaluations after round 0, which measures nothing because all pairs tie."""
    found = [point for point in run.points if point.server_round > 0]
    if not found:
        raise ValueError(
            f"{run.folder} has no evaluation on test pairs after training; run it with frequency_of_test=1"
        )
    if "accuracy" not in found[0].metrics:
        raise ValueError(f"{run.folder} measured no accuracy, by which runs are compared; its test data are no pairs")
    return found


def _pairs_until(points: Sequence[Point], aim: float) -> int | None:
    return next((point.pairs for point in points if point.metrics["accuracy"] >= aim), None)


def _record(method: Method, run: Run, point: Point) -> dict[str, object]:
    where = {"method": method.name, "mode": run.mode, "seed": run.seed, "round": point.server_round}
    spread = {f"{metric}_sd": value for metric, value in point.spread.items()}
    return {**where, "pairs": point.pairs, "seconds": point.seconds, **point.metrics, **spread}


def _named(found: Sequence[Row]) -> str:
    return ", ".join(row.method for row in found)


def _pairs_to_near(row: Row) -> str:
    if not row.num_aims:
        return "-"
    if row.pairs_to_near is None:
        return "not reached"
    return f"{row.pairs_to_near:,.0f}" + (
        f" ({row.num_near} of {row.num_aims} seeds)" if row.num_near < row.num_aims else ""
    )


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    """Return the bytes in decimal units."""
    exponent = min(4, int(math.log10(count) // 3)) if count >= 1 else 0
    return f"{count / 1000**exponent:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[exponent]}"
