"""`compare.png`: accuracy, margin, loss and KL on the test pairs, over pairs, rounds and wall-clock time.

Shapes: R evaluated rounds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fed.reports.curves import MANY_ROUNDS, PANELS
from fed.reports.runs import Method, Point
from fed.reports.statistics import mean_and_se
from fed.reports.style import Style, styles

Floats = NDArray[np.float64]
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^"}  # of the page's symbols
CLEAR, PALE = 0.18, 0.07  # bands: standard error, spread over clients
# Unit of wall time, its seconds, and up to how many seconds it is used.
CLOCK = (("s", 1.0, 300.0), ("min", 60.0, 3 * 3600.0), ("h", 3600.0, np.inf))


class Series(NamedTuple):
    """One metric of one method, each of shape (R,); NaN where unknown."""

    rounds: Floats
    pairs: Floats  # this and what follows are means over seeds
    seconds: Floats
    values: Floats
    errors: Floats  # standard error over seeds; of one seed's accuracy the binomial one
    spreads: Floats  # mode=local: standard deviation over clients


class _Axis(NamedTuple):
    """What stands below a column of panels, and where its numbers are."""

    field: str
    label: str
    unit: float


def draw(methods: Sequence[Method], path: Path) -> None:
    """Write the picture as PNG."""
    figure(methods).savefig(path)


def figure(methods: Sequence[Method]) -> Any:
    """The matplotlib figure: a row of panels for each metric that was measured, a column for each horizontal axis.

    Lines are means over seeds; see `series` for their bands.
    """
    # pyplot would keep the figure alive and choose a backend for the whole process; a bare figure draws with Agg.
    from matplotlib.figure import Figure

    found = {metric: {method.name: series(method, metric) for method in methods} for metric in PANELS}
    found = {metric: drawn for metric, drawn in found.items() if any(one.rounds.size for one in drawn.values())}
    columns = _columns([one for drawn in found.values() for one in drawn.values()])
    size = (3.6 * len(columns) + 0.8, 2.4 * len(found) + 1.2)
    made = Figure(figsize=size, dpi=120, layout="constrained")
    grid = made.subplots(len(found), len(columns), sharex="col", sharey="row", squeeze=False)
    looks = styles([method.name for method in methods])
    for panels, (metric, drawn) in zip(grid, found.items(), strict=True):
        for axes, column in zip(panels, columns, strict=True):
            for index, (name, one) in enumerate(drawn.items()):
                x, line = getattr(one, column.field) / column.unit, _line(looks[name], len(one.rounds))
                _draw(axes, x, one, line, aside=6 * (index - (len(drawn) - 1) / 2))
            _dress(axes, whole=column.field != "seconds")
        panels[0].set_ylabel(PANELS[metric])
    for axes, column in zip(grid[-1], columns, strict=True):
        axes.set_xlabel(column.label)
    made.align_ylabels(grid[:, 0])
    _add_legend(made, methods, looks)
    return made


def series(method: Method, metric: str) -> Series:
    """The metric after each round that all runs of the method were evaluated in.

    A round in which some run's value was not finite is left out, and so is accuracy at round 0.
    """
    kept = [
        (server_round, points)
        for server_round, points in method.by_round()
        # Before training all pairs tie, and ties count as wrong: that 0 measures nothing and would flatten the rest.
        if all(metric in point.metrics for point in points) and not (metric == "accuracy" and server_round == 0)
    ]
    columns = [(server_round, *_summed_up(points, metric)) for server_round, points in kept]
    return Series(*np.array(columns, dtype=np.float64).reshape(-1, len(Series._fields)).T)


def _summed_up(points: Sequence[Point], metric: str) -> tuple[float, float, float, float, float]:
    """Pairs, seconds, value, error and spread at one round."""
    value, error = mean_and_se([point.metrics[metric] for point in points])
    if len(points) == 1:
        error = points[0].metrics.get(f"{metric}_se", np.nan)
    spread = np.mean([point.spread.get(metric, np.nan) for point in points])
    # Float: an unknown time is None, then NaN.
    seconds = np.mean(np.array([point.seconds for point in points], dtype=np.float64))
    return float(np.mean([point.pairs for point in points])), float(seconds), value, error, float(spread)


def _columns(every: Sequence[Series]) -> list[_Axis]:
    columns = [_Axis("pairs", "pairs trained", 1), _Axis("rounds", "round", 1)]
    times = np.concatenate([one.seconds for one in every])
    times = times[np.isfinite(times)]
    if times.size:
        name, unit = next((n, u) for n, u, most in CLOCK if times.max() < most)
        columns.append(_Axis("seconds", f"wall-clock time ({name})", unit))
    return columns


def _line(look: Style, num_rounds: int) -> dict[str, Any]:
    """The look as matplotlib takes it."""
    dashes = tuple(float(length.removesuffix("px")) / 2 for length in look.dash.split(",") if length)
    marker = {"marker": MARKERS[look.symbol], "markersize": 4} if num_rounds < MANY_ROUNDS else {}
    return {"color": look.colour, "linestyle": (0, dashes) if dashes else "-", "linewidth": 1.8, **marker}


def _draw(axes: Any, x: Floats, one: Series, line: Mapping[str, Any], *, aside: float) -> None:
    """Line and bands; of a single round, where a band has no width, an error bar that stands `aside`, in points."""
    if len(x) == 1:
        from matplotlib.transforms import ScaledTranslation

        shifted = axes.transData + ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
        bars = np.where(np.isfinite(one.errors), one.errors, one.spreads)
        for part in axes.errorbar(x, one.values, bars, capsize=3, zorder=3, **line).get_children():
            part.set_transform(shifted)
        return
    axes.plot(x, one.values, zorder=3, **line)
    # So pale a band needs an outline, or others would hide it.
    for half, alpha, outline in ((one.spreads, PALE, 0.6), (one.errors, CLEAR, 0.0)):
        if np.isfinite(half).any():
            colours = {"facecolor": (line["color"], alpha), "edgecolor": (line["color"], 0.5), "linewidth": outline}
            axes.fill_between(x, one.values - half, one.values + half, zorder=2, **colours)


def _dress(axes: Any, *, whole: bool) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=whole, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}" if whole else "{x:,g}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _add_legend(figure: Any, methods: Sequence[Method], looks: Mapping[str, Style]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        (
            Patch(color=looks[method.name].colour, alpha=CLEAR, linewidth=0),
            Line2D([], [], **_line(looks[method.name], 1)),
        )
        for method in methods
    ]
    legend = figure.legend(
        handles,
        [method.name for method in methods],
        title="\n".join(_meaning(methods)),
        loc="outside lower center",
        ncols=min(len(methods), 5),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        handlelength=3.5,
    )
    legend.get_title().set_multialignment("center")
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)  # a method's name may contain dollar signs


def _meaning(methods: Sequence[Method]) -> list[str]:
    """What lines and bands are."""
    counts = {len(method.runs) for method in methods} - {1}
    alone = [method.name for method in methods if method.mode == "local"]
    said = []
    if counts:
        seeds = " or ".join(map(str, sorted(counts)))
        said.append(f"Lines: means of {seeds} seeds on their test pairs. Bands: ± standard error over seeds.")
    if any(len(method.runs) == 1 and method.name not in alone for method in methods):
        said.append("Lines of one seed: on its test pairs. Bands: ± binomial standard error of accuracy.")
    if alone:
        said.append(
            f"{', '.join(alone)}: means over clients that train alone. Pale band: ± standard deviation over them."
        )
    return said
