"""`compare.png`: accuracy, margin, loss and log-ratio on the test pairs, over pairs, rounds and wall-clock time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fed.reports.runs import Method
from fed.reports.series import Clock, Series, all_series, clock
from fed.reports.statistics import Floats
from fed.reports.style import MANY_ROUNDS, PANELS, Style, dress, new_figure, shifted, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^"}  # matplotlib's names of the symbols
CLEAR, PALE = 0.18, 0.07  # bands: standard error or interval, spread over clients


class _Axis(NamedTuple):
    """The horizontal axis of a column of panels."""

    field: str  # of Series
    label: str
    unit: float


def draw(methods: Sequence[Method], path: Path) -> None:
    """Write the picture as PNG."""
    figure(methods).savefig(path)


def figure(methods: Sequence[Method]) -> "Figure":
    """Return the figure: a row of panels for each metric that was measured, a column for each horizontal axis.

    Lines are means over seeds; `fed.reports.series.Series` says what their bands are.
    """
    found = all_series(methods)
    columns = _columns(clock(found))
    made = new_figure(3.6 * len(columns) + 0.8, 2.4 * len(found) + 1.2)
    grid = made.subplots(len(found), len(columns), sharex="col", sharey="row", squeeze=False)
    looks = styles([method.name for method in methods])
    for panels, (metric, drawn) in zip(grid, found.items(), strict=True):
        for axes, column in zip(panels, columns, strict=True):
            for index, (name, one) in enumerate(drawn.items()):
                x, line = getattr(one, column.field) / column.unit, _line(looks[name], len(one.rounds))
                _draw(axes, x, one, line, aside=6 * (index - (len(drawn) - 1) / 2))
            _set_ticks(axes, whole=column.field != "seconds")
            dress(axes)
        panels[0].set_ylabel(PANELS[metric])
    for axes, column in zip(grid[-1], columns, strict=True):
        axes.set_xlabel(column.label)
    made.align_ylabels(grid[:, 0])
    _add_legend(made, _meaning(methods, found), looks)
    return made


def _columns(time: Clock | None) -> list[_Axis]:
    columns = [_Axis("pairs", "pairs trained", 1), _Axis("rounds", "round", 1)]
    return columns if time is None else [*columns, _Axis("seconds", f"wall-clock time ({time.unit})", time.seconds)]


def _line(look: Style, num_rounds: int) -> dict[str, Any]:
    """Return the look as matplotlib's keywords."""
    dashes = tuple(float(length.removesuffix("px")) / 2 for length in look.dash.split(",") if length)
    marker = {"marker": MARKERS[look.symbol], "markersize": 4} if num_rounds < MANY_ROUNDS else {}
    return {"color": look.colour, "linestyle": (0, dashes) if dashes else "-", "linewidth": 1.8, **marker}


def _draw(axes: "Axes", x: Floats, one: Series, line: Mapping[str, Any], *, aside: float) -> None:
    """Draw line and bands; for a single round, where a band has no width, an error bar `aside` by so many points."""
    if len(x) == 1:
        low = np.where(np.isfinite(one.lows), one.values - one.lows, one.spreads)
        high = np.where(np.isfinite(one.highs), one.highs - one.values, one.spreads)
        for part in axes.errorbar(x, one.values, [low, high], capsize=3, zorder=3, **line).get_children():
            part.set_transform(shifted(axes, aside))
        return
    axes.plot(x, one.values, zorder=3, **line)
    # So pale a band needs an outline, or others would hide it.
    spread = one.values - one.spreads, one.values + one.spreads
    for (low, high), alpha, outline in ((spread, PALE, 0.6), ((one.lows, one.highs), CLEAR, 0.0)):
        if np.isfinite(low).any():
            look: dict[str, Any] = {"facecolor": (line["color"], alpha), "edgecolor": (line["color"], 0.5)}
            axes.fill_between(x, low, high, zorder=2, linewidth=outline, **look)


def _set_ticks(axes: "Axes", *, whole: bool) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=whole, min_n_ticks=1, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}" if whole else "{x:,g}"))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))


def _add_legend(figure: "Figure", meaning: Sequence[str], looks: Mapping[str, Style]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [  # tuples are drawn over each other
        (
            Patch(color=look.colour, alpha=CLEAR, linewidth=0),
            Line2D([], [], **_line(look, 1)),
        )
        for look in looks.values()
    ]
    legend = figure.legend(
        handles,
        list(looks),
        title="\n".join(meaning),
        loc="outside lower center",
        ncols=min(len(looks), 5),
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        handlelength=3.5,
    )
    legend.get_title().set_multialignment("center")
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)  # a method's name may contain dollar signs


def _meaning(methods: Sequence[Method], found: Mapping[str, Mapping[str, Series]]) -> list[str]:
    """Say what lines and bands are."""
    counts = {len(method.runs) for method in methods} - {1}
    alone = [method.name for method in methods if method.mode == "local"]
    said = []
    if counts:
        seeds = " or ".join(map(str, sorted(counts)))
        said.append(f"Lines: means of {seeds} seeds on their test pairs. Bands: ± standard error over seeds.")
    several = [drawn[method.name] for drawn in found.values() for method in methods if len(method.runs) > 1]
    if any(np.isfinite(one.lows[np.isnan(one.errors)]).any() for one in several):
        said.append("Where all seeds have the same accuracy: its 95 % Wilson interval.")
    if any(len(method.runs) == 1 and method.name not in alone for method in methods):
        said.append("Lines of one seed: on its test pairs. Bands: 95 % Wilson interval of accuracy.")
    if alone:
        said.append(
            f"{', '.join(alone)}: means over clients that train alone. Pale band: ± standard deviation over them."
        )
    return said
