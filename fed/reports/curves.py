"""`curves.png` of one run: accuracy, margin, loss, log-ratio and the two rewards by round, from `metrics.jsonl`."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fed.reports.style import COLOURS, FAINT, MANY_ROUNDS, PANELS, dress, new_figure, ticks_at_rounds
from fed.tracking.metrics import EVERYONE, Line, num_tied, read_metrics, untied_accuracy
from fed.tracking.run_files import CURVES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The two parts of the margin; drawn for one run only.
REWARDS = {
    "reward_chosen": "reward of chosen (β · nats)",
    "reward_rejected": "reward of rejected (β · nats)",
}
# Of a run whose clients make their pairs.
WON = {"win_rate": "win rate against round 0", "length_controlled": "win rate at equal length"}
# Line style and marker tell the splits apart without colours.
STYLES: dict[str, dict[str, Any]] = {
    "train": {"color": COLOURS[2], "linestyle": ":", "marker": "^"},
    "validation": {"color": COLOURS[0], "linestyle": "-", "marker": "o"},
    "test": {"color": COLOURS[1], "linestyle": "--", "marker": "s"},
    "held-out": {"color": COLOURS[3], "linestyle": "-.", "marker": "D"},
}
POOLED = {"held-out": "held-out, counts of all clients"}  # what the server learns of clients; not drawn for clients
MANY_CLIENTS = 30  # from here on lines would hide each other, and points are drawn


def curves(run_dir: Path) -> Path | None:
    """Draw a run's `curves.png` and return its path; None if `metrics.jsonl` holds nothing to draw.

    A split is drawn from the server's lines. Where there are none, as in mode=local, it is the mean over clients with
    one standard deviation to either side.
    """
    lines = [line for line in read_metrics(run_dir) if line.who != EVERYONE]  # the spread comes from single clients
    labels = {**PANELS, **REWARDS, **WON}
    panels = {metric: drawn for metric in labels if (drawn := series_of(lines, metric))}
    if not panels:
        return None
    rounds = {float(at) for drawn in panels.values() for series in drawn for at in series.rounds}
    columns = min(2 if len(panels) < 5 else 3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.8 * columns + 0.4, 3.2 * rows + 1.0)
    for index, (metric, drawn) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, index + 1, sharex=figure.axes[0] if figure.axes else None)
        if metric == "accuracy":
            _draw_clients(axes, lines)
        for series in drawn:
            _draw(axes, series, side_by_side=len(rounds) == 1)
        axes.set_xlabel("round")
        axes.set_ylabel(labels[metric])
        ticks_at_rounds(axes)
        dress(axes)
    if len(rounds) == 1:
        figure.axes[0].set_xlim(min(rounds) - 0.6, max(rounds) + 0.6)
    _entitle(figure, run_dir.resolve())
    path = run_dir / CURVES
    figure.savefig(path)
    return path


class Series(NamedTuple):
    """One curve with the ends of its band, NaN where unknown."""

    label: str
    split: str
    rounds: NDArray[np.float64]
    values: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def series_of(lines: Sequence[Line], metric: str) -> list[Series]:
    """Return one curve of the metric per split: of the server, or else the mean over the clients."""
    found = []
    for split in STYLES:
        of_split = [line for line in lines if line.split == split and _measured(line, metric)]
        from_server = [line for line in of_split if line.who == "server"]
        if from_server:
            found.append(_of_server(from_server, split, metric))
        elif of_split and split not in POOLED:
            # Counted for all panels alike, so that the legend names each split once.
            tied = num_tied(line.metrics for line in lines if line.split == split == "train")
            found.append(_of_clients(of_split, split, metric, tied))
    return found


def _measured(line: Line, metric: str) -> bool:
    # Before training policy equals reference, every pair is a tie and ties count as wrong: that 0 measures nothing and
    # would flatten the rest.
    if metric == "accuracy" and line.server_round == 0 and line.metrics.get(metric) == 0:
        return False
    return _value(line, metric) is not None


def _of_server(lines: Sequence[Line], split: str, metric: str) -> Series:
    lines = sorted(lines, key=lambda line: line.server_round)
    values = _column(lines, metric)
    # One label for all panels, though only one of them has a band, so that the legend names each split once.
    has_band = any(name.endswith("_low") for line in lines for name in line.metrics)
    label = f"{POOLED.get(split, split)}{' (band: 95 % interval)' if has_band else ''}"
    ends = (_column(lines, f"{metric}_{end}") for end in ("low", "high"))
    return Series(label, split, _rounds(lines), values, *ends)


def _of_clients(lines: Sequence[Line], split: str, metric: str, tied: int) -> Series:
    by_round: dict[int, list[Line]] = defaultdict(list)
    for line in lines:
        by_round[line.server_round].append(line)
    columns = [_column(by_round[server_round], metric) for server_round in sorted(by_round)]
    spread = np.array([column.std(ddof=1) if len(column) > 1 else np.nan for column in columns])
    means, rounds = np.array([column.mean() for column in columns]), np.array(sorted(by_round), dtype=float)
    left_out = f"; {tied:,} tied pairs left out" if tied else ""
    label = f"{split}, mean of clients (band: standard deviation{left_out})"
    return Series(label, split, rounds, means, means - spread, means + spread)


def _rounds(lines: Iterable[Line]) -> NDArray[np.float64]:
    return np.array([line.server_round for line in lines], dtype=float)


def _column(lines: Iterable[Line], metric: str) -> NDArray[np.float64]:
    values = (_value(line, metric) for line in lines)
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _value(line: Line, metric: str) -> float | None:
    """Return the metric as it is drawn: a client's training leaves ties out, evaluations count them as wrong."""
    if metric == "accuracy" and (line.split == "train" or line.metrics.get("ties") == 1):
        return untied_accuracy(line.metrics)
    value: float | None = line.metrics.get(metric)
    return value


def _draw(axes: "Axes", series: Series, *, side_by_side: bool) -> None:
    style = dict(STYLES[series.split])
    if len(series.rounds) >= MANY_ROUNDS:
        del style["marker"]
    if len(series.rounds) == 1:  # a band needs two rounds
        shift = 0.1 * (1 + list(STYLES).index(series.split)) if side_by_side else 0.0
        x = series.rounds + shift
        ends = [series.values - series.low, series.high - series.values]
        axes.errorbar(x, series.values, ends, label=series.label, capsize=4, zorder=3, **style)
        return
    axes.plot(series.rounds, series.values, label=series.label, linewidth=1.8, markersize=4, zorder=3, **style)
    axes.fill_between(series.rounds, series.low, series.high, color=style["color"], alpha=0.18, linewidth=0, zorder=2)


def _draw_clients(axes: "Axes", lines: Sequence[Line]) -> None:
    """Draw every client's accuracy on its own pairs, in the background."""
    reports = [line for line in lines if line.who != "server" and _measured(line, "accuracy")]
    split = next((split for split in ("validation", "test") if any(line.split == split for line in reports)), None)
    of_client: dict[str, list[Line]] = defaultdict(list)
    for line in reports:
        if line.split == split:
            of_client[line.who].append(line)
    label = f"single clients, {split}"
    many = len(of_client) >= MANY_CLIENTS
    style: dict[str, Any] = {"color": FAINT, "linewidth": 0.8, "marker": ".", "zorder": 1}
    style |= {"linestyle": "none", "markersize": 3, "alpha": 0.3} if many else {"markersize": 4, "alpha": 0.5}
    for own in of_client.values():
        own.sort(key=lambda line: line.server_round)
        axes.plot(_rounds(own), _column(own, "accuracy"), label=label, **style)


def _entitle(figure: "Figure", run_dir: Path) -> None:
    # parse_math=False because a folder's name may contain dollar signs.
    figure.suptitle(f"{run_dir.parent.name}  ({run_dir.name})", fontsize=12, parse_math=False)
    entries: dict[str, Any] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        entries.update(zip(labels, handles, strict=True))
    legend = figure.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=min(len(entries), 2),
        frameon=False,
        fontsize=9,
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
