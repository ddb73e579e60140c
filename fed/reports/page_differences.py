"""The page's verdict in one sentence, and its forest plot of the paired differences in accuracy."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fed.config.explain import in_a_row
from fed.reports.page_figures import Plot, axis, layout, literal
from fed.reports.statistics import SAME, Difference
from fed.reports.tables import Row

SHOWN, NOT_SHOWN = "#1a1a1a", "#8a8a8a"
ROW = 42  # pixels for a name and the interval below it
NARROWEST = 0.02  # half of the smallest axis; smaller differences would look large
LONGEST = 22  # letters of a method's name
MOST_NAMED = 4  # methods that the verdict lists one by one

Pairs = Mapping[tuple[str, str], Difference]


def verdict(rows: Sequence[Row], differences: Pairs) -> str:
    """Return one sentence: the methods with the highest final accuracy, and which of the others they surpass.

    Args:
        rows: The results of each method.
        differences: The paired difference of every two of them.

    Raises:
        ValueError: If there is no method.
    """
    highest = max(-math.inf if math.isnan(row.accuracy.mean) else row.accuracy.mean for row in rows)
    if highest == -math.inf:
        return "No method ended with a finite accuracy."
    best = [row for row in rows if abs(row.accuracy.mean - highest) < SAME]
    names = [row.method for row in best]
    counts = sorted({len(row.seeds) for row in best})
    where = f"on the test pairs, {highest:.3f} ({' or '.join(map(str, counts))} seed{'s' * (counts != [1])})"
    if len(best) == 1:
        said, they_are = f"{names[0]} has the highest accuracy {where}", "it is"
    else:
        rank = " highest" if len(best) < len(rows) else ""
        said, they_are = f"{_listed(names, 'methods')} have the same{rank} accuracy {where}", "they are all"
    if len(rows) == 1:
        said += "; there is no other method"
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.method not in names and (standing := _standing(names, row.method, differences)):
            found.setdefault(standing, []).append(row.method)
    if below := found.get("below"):
        said += f": {they_are} better than {_listed(below)}"
    join = ";" if below else ", but"
    if level := found.get("level"):
        differ = "no difference from" if len(best) == 1 else "no difference of each of them from"
        said, join = f"{said}{join} {differ} {_listed(level)} is shown", ";"
    if unsure := found.get("unsure"):
        said += f"{join} there are too few seeds to say whether {they_are} better than {_listed(unsure)}"
    if above := found.get("above"):  # the mean is over other seeds or rounds than the paired difference
        said += f"; {_listed(above)} did better in the seeds and rounds that both have"
    return f"{said}."


def _standing(best: Sequence[str], other: str, differences: Pairs) -> str | None:
    """Return where a method stands below or above all of the best, "level" and "unsure" where that is not shown."""
    found = []
    for name in best:
        if (difference := differences.get((name, other))) is not None:
            found.append((difference, difference.low > 0, difference.high < 0))
        elif (difference := differences.get((other, name))) is not None:
            found.append((difference, difference.high < 0, difference.low > 0))
    if not found:
        return None
    if all(is_below for _, is_below, _ in found):
        return "below"
    if any(is_above for *_, is_above in found):
        return "above"
    return "unsure" if any(difference.has_too_few_seeds for difference, *_ in found) else "level"


def _listed(names: Sequence[str], many: str = "other methods") -> str:
    if len(names) > MOST_NAMED:
        return f"{len(names)} {many}"
    return in_a_row(names)


def forest(differences: Pairs) -> list[Plot]:
    """Return a forest plot: a row for each two methods, with the difference and its interval; none for one method."""
    if not differences:
        return []
    names = [f"{_short(a)} − {_short(b)}" for a, b in differences]  # noqa: RUF001 - a minus sign
    kinds = {difference.shown for difference in differences.values()}
    data = [_trace(differences, shown) for shown in (True, False) if shown in kinds]
    axes = {
        "xaxis": axis("difference in accuracy", range=_range(differences), zeroline=True, zerolinecolor="#1a1a1a"),
        "yaxis": {"range": [len(names) - 0.5, -0.9], "visible": False},
        "annotations": [_name(name, row) for row, name in enumerate(names)],
        "margin": {"l": 8, "r": 14, "t": 32, "b": 46},
    }
    excluding = sum(difference.shown for difference in differences.values())
    description = (
        f"A dot right of the line: the method named first ranks more test pairs correctly. Bars are 95 % intervals; "
        f"{excluding} of {len(names)} exclude 0."
    )
    figure = {"data": data, "layout": layout(height=100 + ROW * len(names), hovermode="closest", **axes)}
    legend = [(SHOWN, "interval excludes 0"), (NOT_SHOWN, "interval includes 0")]
    return [Plot("Paired differences in accuracy", description, figure, legend)]


def _trace(differences: Pairs, shown: bool) -> dict[str, Any]:
    """Return the rows whose interval excludes 0, or the others: plotly gives all bars of a trace one colour."""
    rows = [(row, pair) for row, pair in enumerate(differences) if differences[pair].shown == shown]
    found = [differences[pair] for _, pair in rows]
    colour = SHOWN if shown else NOT_SHOWN
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [each.mean for each in found],
        "y": [row for row, _ in rows],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [_known(each.high - each.mean) for each in found],
            "arrayminus": [_known(each.mean - each.low) for each in found],
            "color": colour,
            "thickness": 2,
            "width": 4,
        },
        "marker": {"color": colour if shown else "#ffffff", "size": 9, "line": {"color": colour, "width": 2}},
        "hovertext": [
            f"<b>{literal(a)}</b> minus <b>{literal(b)}</b><br>{each.mean:z.3f} [{each.low:z.3f}, {each.high:z.3f}]"
            for (_, (a, b)), each in zip(rows, found, strict=True)
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _name(name: str, row: int) -> dict[str, Any]:
    """Return the text above a row; beside the axis there is no room for it on a telephone."""
    place = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "y", "y": row, "yanchor": "bottom", "yshift": 5}
    return {**place, "text": literal(name), "showarrow": False, "bgcolor": "rgba(255,255,255,.8)"}


def _range(differences: Pairs) -> list[float]:
    """Return the ends of the axis: every interval and 0 lie within, and it is not narrower than 2 NARROWEST."""
    ends = [end for each in differences.values() for end in (each.low, each.mean, each.high) if math.isfinite(end)]
    low, high = min([*ends, -NARROWEST]), max([*ends, NARROWEST])
    return [low - 0.04 * (high - low), high + 0.04 * (high - low)]


def _known(half: float) -> float:
    return half if math.isfinite(half) else 0.0


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
