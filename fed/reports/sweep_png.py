"""`sweep.png`: final test accuracy by each swept key, over the first two of them, and the best settings."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fed.reports.statistics import Share
from fed.reports.style import COLOURS, FAINT, GREY, GRID, dress, new_figure, shifted
from fed.reports.sweep_settings import Setting, Value, best_first, is_number, label, order, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import ErrorbarContainer
    from matplotlib.figure import Figure, SubFigure

MARKERS = "osD^vP"
MOST_LINES = len(MARKERS)  # combinations of the other keys that have a colour each, else one for their mean
MOST_RANKED = 10  # settings in the ranking
THIN: dict[str, Any] = {"color": FAINT, "alpha": 0.6, "linewidth": 0.7, "zorder": 1}
NARROWEST = 0.02  # the smallest range of accuracies; smaller differences would look large
MOST_TICKS = 12  # values that are all written on an axis
DECADE = 10.0  # largest by smallest from which on an axis is logarithmic
LONGEST = 24  # letters of a value
APART = 5.0  # points between the bars of two lines


def picture(swept: Sequence[Setting], keys: Sequence[str], path: Path) -> None:
    """Write the picture as PNG."""
    figure(swept, keys).savefig(path)


def figure(swept: Sequence[Setting], keys: Sequence[str]) -> "Figure":
    """Draw a panel for each key, a map of the first two, and a ranking if there are more; without keys, the seeds.

    All of them show the same range of accuracies, the colours of the map too.
    """
    panels = max(len(keys), 1) + (len(keys) > 1)
    columns = 2 if panels == 4 else min(panels, 3)
    rows = -(-panels // columns)
    ranked = best_first(swept)[:MOST_RANKED] if len(keys) > 2 else []
    heights = [4.2 * rows + 0.6, *([0.9 + 0.28 * len(ranked)] if ranked else [])]
    made = new_figure(5.0 * columns + 0.4, sum(heights))
    # Parts of their own: the ranking's long names would else push all panels aside.
    top, *below = made.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat
    axes = [top.add_subplot(rows, columns, index + 1) for index in range(panels)]
    of_keys = axes[: max(len(keys), 1)]
    for index, panel in enumerate(of_keys):
        if keys:
            _draw_key(panel, swept, keys, index)
        else:
            _draw_seeds(panel, swept)
        panel.set_xlabel(_safe(label(keys[index]) if keys else "seed"))
        panel.set_ylabel("final test accuracy (share of pairs)" if index % columns == 0 else "")
        dress(panel)
    limits = _align(of_keys, swept)
    if len(keys) > 1:
        _draw_map(top, axes[-1], swept, keys, limits)
    for part in below:
        _draw_ranking(part.add_subplot(), ranked, keys, limits)
    count = sum(len(setting.runs) for setting in swept)
    made.suptitle(_safe(f"{', '.join(map(label, keys)) or 'seed'}: final test accuracy of {count} runs"), fontsize=12)
    made.supxlabel("\n".join(_notes(swept, keys)), fontsize=9, color=GREY)
    return made


def _notes(swept: Sequence[Setting], keys: Sequence[str]) -> list[str]:
    """Say what small points, bars and thin lines are, if there are any."""
    said = []
    if any(len(setting.runs) > 1 for setting in swept):
        said.append("small points: single runs; bars: ± standard error over seeds")
    finals = [(setting, values) for setting in swept if (values := setting.final("accuracy"))]
    if any(isinstance(setting.summed_up(values), Share) for setting, values in finals):
        said.append("bars of one run, or of runs with the same accuracy: 95 % Wilson interval")
    if any(len(_groups(swept, index)) > MOST_LINES for index in range(len(keys))):
        said.append("thin lines: runs alike in all other keys; thick line: their mean")
    return said


class _Line(NamedTuple):
    """Settings by the values of one key in order: those alike in all others, or all of them."""

    name: str
    at: list[Value]
    of_value: list[list[Setting]]


def _groups(swept: Sequence[Setting], index: int) -> dict[tuple[Value, ...], list[Setting]]:
    """Return the settings by their values of all keys but one, in order."""
    groups: dict[tuple[Value, ...], list[Setting]] = {}
    for setting in swept:
        others = (*setting.values[:index], *setting.values[index + 1 :])
        groups.setdefault(others, []).append(setting)
    return {others: groups[others] for others in sorted(groups, key=lambda others: [*map(order, others)])}


def _line(name: str, swept: Iterable[Setting], index: int) -> _Line:
    at: dict[Value, list[Setting]] = {}
    for setting in swept:
        at.setdefault(setting.values[index], []).append(setting)
    values = sorted(at, key=order)
    return _Line(name, values, [at[value] for value in values])


def _name(keys: Sequence[str], values: Sequence[Value]) -> str:
    return ", ".join(f"{label(key)}={_short(shown(key, value))}" for key, value in zip(keys, values, strict=True))


def _draw_key(axes: "Axes", swept: Sequence[Setting], keys: Sequence[str], index: int) -> None:
    """Draw a line for each combination of the other keys; of many only their mean has a colour and markers."""
    values = sorted({setting.values[index] for setting in swept}, key=order)
    place = _place(axes, keys[index], values)
    other_keys = [*keys[:index], *keys[index + 1 :]]
    lines = [_line(_name(other_keys, others), group, index) for others, group in _groups(swept, index).items()]
    connect = "-" if all(map(is_number, values)) else ":"
    if len(lines) > MOST_LINES:
        for line in lines:
            means = [mean_accuracy(of_value)[0] for of_value in line.of_value]
            marker = "" if len(means) > 1 else "."
            axes.plot([place[value] for value in line.at], means, marker=marker, **THIN)
        lines = [_line(f"mean over {', '.join(map(label, other_keys))}", swept, index)]
    for number, line in enumerate(lines):
        shift = APART * (number - (len(lines) - 1) / 2)
        at = [place[value] for value in line.at]
        _draw_means(axes, line, at, shift, {"marker": MARKERS[number], "color": COLOURS[number], "linestyle": connect})
        if len(lines) > 1 or len(keys) == 1:
            _draw_runs(axes, line, at, shift + APART / 2, COLOURS[number])
    axes.autoscale_view()
    if len(keys) > 1:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)


def _draw_means(axes: "Axes", line: _Line, at: Sequence[float], shift: float, style: dict[str, Any]) -> None:
    found = [mean_accuracy(of_value) for of_value in line.of_value]
    shape: dict[str, Any] = {"linewidth": 1.5, "markersize": 5, "capsize": 3, "elinewidth": 1.0, "zorder": 3}
    name = _safe(line.name) or None
    means, reach = _bars(found)
    bars = axes.errorbar(at, means, reach, label=name, transform=shifted(axes, shift), **shape, **style)
    _show_whole(bars)
    # Matplotlib leaves shifted things out when it chooses the limits.
    axes.update_datalim([(x, y) for x, ends in zip(at, found, strict=True) for y in ends if not math.isnan(y)])


def _draw_runs(axes: "Axes", line: _Line, at: Sequence[float], shift: float, color: str) -> None:
    points = [
        (x, accuracy)
        for x, of_value in zip(at, line.of_value, strict=True)
        for setting in of_value
        for accuracy in setting.final("accuracy")
    ]
    if len(points) > len(at):
        x, y = zip(*points, strict=True)
        look: dict[str, Any] = {"s": 9, "alpha": 0.5, "linewidths": 0, "zorder": 2, "clip_on": False}
        axes.scatter(x, y, color=color, transform=shifted(axes, shift), **look)
        axes.update_datalim(points)


def _draw_seeds(axes: "Axes", swept: Sequence[Setting]) -> None:
    runs = swept[0].runs
    seeds = [str(run.seed) for run in runs]
    place = _place(axes, "seed", seeds)
    values = [run.points[-1].metrics.get("accuracy", math.nan) for run in runs]
    axes.scatter(list(place.values()), values, s=10, color=COLOURS[0], clip_on=False)
    mean, reach = _bars([mean_accuracy(swept)])
    _show_whole(axes.errorbar([len(runs)], mean, reach, capsize=4, marker=MARKERS[0], color=COLOURS[0]))
    ticks = [*place.values(), len(runs)]
    axes.set_xticks(ticks, [*dict.fromkeys(seeds), "mean"])


def mean_accuracy(swept: Sequence[Setting]) -> tuple[float, float, float]:
    """Return the mean accuracy over settings, and of a single one the ends of its bar; NaN where unknown.

    The bar is the uncertainty that `sweep.md` tells: a standard error to either side, or Wilson's interval.
    """
    known = [setting.summed_up(values) for setting in swept if (values := setting.final("accuracy"))]
    if not known:
        return math.nan, math.nan, math.nan
    ends = (known[0].low, known[0].high) if len(swept) == 1 else (math.nan, math.nan)
    return fmean(found.mean for found in known), *ends


def _bars(found: Sequence[tuple[float, float, float]]) -> tuple[list[float], list[list[float]]]:
    """Return the means, and how far the bars reach below and above them."""
    below, above = [mean - low for mean, low, _ in found], [high - mean for mean, _, high in found]
    return [mean for mean, *_ in found], [below, above]


def _show_whole(bars: "ErrorbarContainer") -> None:
    """Let nothing be cut off at the edge of the panel, which may be an accuracy of 1."""
    for part in bars.get_children():
        part.set_clip_on(False)


def _place(axes: "Axes", key: str, values: Sequence[Value]) -> dict[Value, float]:
    """Set the x-axis up and return the place of each value: numbers to scale, all else side by side."""
    texts = [_safe(_short(shown(key, value))) for value in values]
    if not all(map(is_number, values)):
        place = {value: float(number) for number, value in enumerate(values)}
        turned: dict[str, Any] = {"rotation": 20, "ha": "right"} if sum(map(len, texts)) > 36 else {}
        axes.set_xticks(list(place.values()), texts, **turned)
        axes.margins(x=0.15)
        return place
    place = {value: float(value) for value in values}  # type: ignore[arg-type]
    _scale(axes, list(place.values()))
    if len(values) <= MOST_TICKS:
        axes.set_xticks(list(place.values()), texts)
        axes.minorticks_off()
    return place


def _scale(axes: "Axes", values: Sequence[float]) -> None:
    """Make the x-axis logarithmic if sizes differ much; about a zero, which has no logarithm, it stays linear."""
    sizes = [abs(value) for value in values if value]
    if len(values) < 3 or max(sizes) / min(sizes) < DECADE:
        return
    if min(values) > 0:
        axes.set_xscale("log")
    else:
        axes.set_xscale("symlog", linthresh=min(sizes))


def _draw_map(
    figure: "SubFigure", axes: "Axes", swept: Sequence[Setting], keys: Sequence[str], limits: tuple[float, float]
) -> None:
    columns, rows = (sorted({setting.values[index] for setting in swept}, key=order) for index in (0, 1))
    cells = np.full((len(rows), len(columns)), np.nan)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            cells[y, x] = mean_accuracy([setting for setting in swept if setting.values[:2] == (column, row)])[0]
    axes.set_facecolor(GRID)  # cells without a run
    image = axes.imshow(cells, cmap="cividis", aspect="auto", origin="lower", vmin=limits[0], vmax=limits[1])
    figure.colorbar(image, ax=axes, shrink=0.9)
    dark = np.asarray(image.norm(cells)) < 0.5
    for (y, x), value in np.ndenumerate(cells):
        if not math.isnan(value):
            colour = "white" if dark[y, x] else "black"
            axes.text(x, y, f"{value:.3f}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(columns)), [_safe(_short(shown(keys[0], value))) for value in columns])
    axes.set_yticks(range(len(rows)), [_safe(_short(shown(keys[1], value))) for value in rows])
    axes.set_xlabel(_safe(label(keys[0])))
    axes.set_ylabel(_safe(label(keys[1])))
    axes.set_title("mean accuracy" if len(keys) == 2 else "mean accuracy over the other keys", fontsize=10)


def _draw_ranking(axes: "Axes", ranked: Sequence[Setting], keys: Sequence[str], limits: tuple[float, float]) -> None:
    """Draw the settings below each other, the best on top."""
    means, reach = _bars([mean_accuracy([setting]) for setting in ranked])
    rows = range(len(ranked))
    style: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 5, "capsize": 3, "color": COLOURS[0]}
    _show_whole(axes.errorbar(means, rows, xerr=reach, **style))
    for row, setting in enumerate(ranked):
        if len(accuracies := setting.final("accuracy")) > 1:
            look: dict[str, Any] = {"s": 9, "alpha": 0.5, "linewidths": 0, "clip_on": False}
            axes.scatter(accuracies, [row] * len(accuracies), color=COLOURS[0], **look)
    axes.set_yticks(rows, [_safe(_name(keys, setting.values)) for setting in ranked], fontsize=8)
    axes.set_ylim(len(ranked) - 0.4, -0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(max(min(low, limits[0]), 0.0), min(max(high, limits[1]), 1.0))
    axes.set_xlabel("final test accuracy (share of pairs)")
    axes.set_title(f"the {len(ranked)} best settings; of many, the best one is partly lucky", fontsize=10)
    dress(axes)


def _align(panels: Sequence["Axes"], swept: Sequence[Setting]) -> tuple[float, float]:
    """Give all panels one range within [0, 1], at least as wide as the interval of a run's accuracy, and return it."""
    low, high = min(axes.get_ylim()[0] for axes in panels), max(axes.get_ylim()[1] for axes in panels)
    least = max(NARROWEST, *(setting.noise for setting in swept))
    missing = max(least - (high - low), 0.0) / 2
    low, high = max(low - missing, 0.0), min(high + missing, 1.0)
    # What was cut off at one end is added at the other.
    low, high = max(min(low, high - least), 0.0), min(max(high, low + least), 1.0)
    for axes in panels:
        axes.set_ylim(low, high)
        axes.ticklabel_format(axis="y", useOffset=False)
    return low, high


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"


def _safe(text: str) -> str:
    """Escape dollar signs, which a folder's name may contain and matplotlib would read as formulas."""
    return text.replace("$", r"\$")
