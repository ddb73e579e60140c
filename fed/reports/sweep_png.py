"""`sweep.png`: final test accuracy by each swept key, and over the first two of them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fed.reports.statistics import mean_and_se
from fed.reports.style import COLOURS, GREY, GRID, dress, new_figure, shifted
from fed.reports.sweep_settings import Setting, Value, is_number, label, order, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vP"
MOST_LINES = len(MARKERS)  # combinations of the other keys that are drawn one by one, else their mean
MOST_TICKS = 12  # values that are all written on an axis
DECADE = 10.0  # largest by smallest from which on an axis is logarithmic
LONGEST = 24  # letters of a value
APART = 5.0  # points between the bars of two lines


def picture(swept: Sequence[Setting], keys: Sequence[str], path: Path) -> None:
    """Draw a panel for each key and a heat map of the first two; without keys, draw the seeds."""
    panels = max(len(keys), 1) + (len(keys) > 1)
    columns = 2 if panels == 4 else min(panels, 3)
    rows = -(-panels // columns)
    figure = new_figure(5.0 * columns + 0.4, 4.2 * rows + 0.6)
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
    if keys:
        for index, key in enumerate(keys):
            _draw_key(axes[index], swept, keys, index)
            _label(axes[index], label(key))
    else:
        _draw_seeds(axes[0], swept)
        _label(axes[0], "seed")
    _align(axes[: max(len(keys), 1)])
    if len(keys) > 1:
        _draw_map(figure, axes[-1], swept, keys)
    count = sum(len(setting.runs) for setting in swept)
    figure.suptitle(_safe(f"{', '.join(map(label, keys)) or 'seed'}: final test accuracy of {count} runs"), fontsize=12)
    if count > len(swept):
        figure.supxlabel("small points: single runs; bars: standard error over seeds", fontsize=9, color=GREY)
    figure.savefig(path)


class _Line(NamedTuple):
    """Settings that differ in one key, by its values in order; all settings if there would be too many lines."""

    name: str
    at: list[Value]
    of_value: list[list[Setting]]


def _lines(swept: Sequence[Setting], keys: Sequence[str], index: int) -> list[_Line]:
    groups: dict[tuple[Value, ...], list[Setting]] = {}
    for setting in swept:
        others = (*setting.values[:index], *setting.values[index + 1 :])
        groups.setdefault(others, []).append(setting)
    other_keys = [*keys[:index], *keys[index + 1 :]]
    if len(groups) > MOST_LINES:
        return [_line(f"mean over {', '.join(map(label, other_keys))}", swept, index)]
    names = {others: _name(other_keys, others) for others in groups}
    return [_line(names[others], groups[others], index) for others in sorted(groups, key=lambda o: [*map(order, o)])]


def _line(name: str, swept: Iterable[Setting], index: int) -> _Line:
    at: dict[Value, list[Setting]] = {}
    for setting in swept:
        at.setdefault(setting.values[index], []).append(setting)
    values = sorted(at, key=order)
    return _Line(name, values, [at[value] for value in values])


def _name(keys: Sequence[str], values: Sequence[Value]) -> str:
    return ", ".join(f"{label(key)}={_short(shown(key, value))}" for key, value in zip(keys, values, strict=True))


def _draw_key(axes: "Axes", swept: Sequence[Setting], keys: Sequence[str], index: int) -> None:
    values = sorted({setting.values[index] for setting in swept}, key=order)
    place = _place(axes, keys[index], values)
    lines = _lines(swept, keys, index)
    connect = "-" if all(map(is_number, values)) else ":"
    for number, line in enumerate(lines):
        shift = APART * (number - (len(lines) - 1) / 2)
        at = [place[value] for value in line.at]
        _draw_means(axes, line, at, shift, {"marker": MARKERS[number], "color": COLOURS[number], "linestyle": connect})
        _draw_runs(axes, line, at, shift + APART / 2, COLOURS[number])
    axes.autoscale_view()
    if len(keys) > 1:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False, fontsize=8)


def _draw_means(axes: "Axes", line: _Line, at: Sequence[float], shift: float, style: dict[str, Any]) -> None:
    means, errors = zip(*(mean_accuracy(of_value) for of_value in line.of_value), strict=True)
    shape: dict[str, Any] = {"linewidth": 1.5, "markersize": 5, "capsize": 3, "elinewidth": 1.0, "zorder": 3}
    name = _safe(line.name) or None
    axes.errorbar(at, means, errors, label=name, transform=shifted(axes, shift), **shape, **style)
    # Matplotlib leaves shifted things out when it chooses the limits.
    ends = [(x, mean + end) for x, mean, error in zip(at, means, errors, strict=True) for end in (0, -error, error)]
    axes.update_datalim([(x, y) for x, y in ends if not math.isnan(y)])


def _draw_runs(axes: "Axes", line: _Line, at: Sequence[float], shift: float, color: str) -> None:
    points = [
        (x, accuracy)
        for x, of_value in zip(at, line.of_value, strict=True)
        for setting in of_value
        for accuracy in setting.final("accuracy")
    ]
    if len(points) > len(at):
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=9, alpha=0.5, linewidths=0, color=color, zorder=2, transform=shifted(axes, shift))
        axes.update_datalim(points)


def _draw_seeds(axes: "Axes", swept: Sequence[Setting]) -> None:
    runs = swept[0].runs
    seeds = [str(run.seed) for run in runs]
    place = _place(axes, "seed", seeds)
    values = [run.points[-1].metrics.get("accuracy", math.nan) for run in runs]
    axes.scatter(list(place.values()), values, s=10, color=COLOURS[0])
    mean, se = mean_and_se(values)
    axes.errorbar([len(runs)], [mean], [se], capsize=4, marker=MARKERS[0], color=COLOURS[0])
    ticks = [*place.values(), len(runs)]
    axes.set_xticks(ticks, [*dict.fromkeys(seeds), "mean"])


def mean_accuracy(swept: Sequence[Setting]) -> tuple[float, float]:
    """Return the mean accuracy over settings, and for a single setting its standard error; NaN where unknown."""
    known = [mean_and_se(values) for setting in swept if (values := setting.final("accuracy"))]
    if not known:
        return math.nan, math.nan
    return fmean(found.mean for found in known), known[0].se if len(swept) == 1 else math.nan


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


def _draw_map(figure: "Figure", axes: "Axes", swept: Sequence[Setting], keys: Sequence[str]) -> None:
    columns, rows = (sorted({setting.values[index] for setting in swept}, key=order) for index in (0, 1))
    cells = np.full((len(rows), len(columns)), np.nan)
    for y, row in enumerate(rows):
        for x, column in enumerate(columns):
            cells[y, x] = mean_accuracy([setting for setting in swept if setting.values[:2] == (column, row)])[0]
    axes.set_facecolor(GRID)  # cells without a run
    image = axes.imshow(cells, cmap="cividis", aspect="auto", origin="lower")
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


def _align(panels: Sequence["Axes"]) -> None:
    """Give all panels one range of at least 0.02; smaller differences would look large."""
    low, high = min(axes.get_ylim()[0] for axes in panels), max(axes.get_ylim()[1] for axes in panels)
    missing = max(0.02 - (high - low), 0.0) / 2
    for axes in panels:
        axes.set_ylim(low - missing, high + missing)
        axes.ticklabel_format(axis="y", useOffset=False)


def _label(axes: "Axes", name: str) -> None:
    axes.set_xlabel(_safe(name))
    axes.set_ylabel("final test accuracy (share of pairs)")
    dress(axes)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"…{text[1 - LONGEST :]}"


def _safe(text: str) -> str:
    """Escape dollar signs, which a folder's name may contain and matplotlib would read as formulas."""
    return text.replace("$", r"\$")
