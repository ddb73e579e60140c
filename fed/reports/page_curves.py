"""The page's curves of the methods on the test pairs, over pairs, rounds or wall-clock time."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fed.reports.page_figures import Plot, axis, layout, literal, ticks
from fed.reports.runs import Method
from fed.reports.series import CLOCKS, Clock, Series, all_series, clock
from fed.reports.statistics import Floats
from fed.reports.style import MANY_ROUNDS, PANELS, Style, styles

CLEAR, PALE = 0.16, 0.07  # bands: standard error or interval, spread over clients


def curves(methods: Sequence[Method]) -> list[Plot]:
    """Return a figure for each metric that was measured; lines are means over seeds.

    `meta` of a trace holds its x values for each horizontal axis, `meta` of a layout the axes themselves.
    """
    looks = styles([method.name for method in methods])
    found = all_series(methods)
    time = clock(found) or CLOCKS[0][0]
    plots = []
    for metric, every in found.items():
        drawn = {name: one for name, one in every.items() if one.rounds.size}
        data = [trace for name, one in drawn.items() for trace in _traces(name, metric, one, looks[name], time)]
        figure = {"data": data, "layout": _layout(drawn, time)}
        plots.append(Plot(" ".join(PANELS[metric].split()), _describe(metric, drawn), figure))
    return plots


def _traces(name: str, metric: str, one: Series, look: Style, time: Clock) -> Iterator[dict[str, Any]]:
    """Yield the two edges of each known band, then the line."""
    xs = {"pairs": _plain(one.pairs), "rounds": _plain(one.rounds), "time": _plain(one.seconds / time.seconds)}
    common = {"type": "scatter", "name": literal(name), "x": xs["pairs"], "meta": {"method": name, **xs}}
    # A line at the edge of the paler band, or others would hide it.
    spread = one.values - one.spreads, one.values + one.spreads
    for (low, high), alpha, width in ((spread, PALE, 0.6), ((one.lows, one.highs), CLEAR, 0.0)):
        if np.isfinite(low).all():
            line = {"color": _faint(look.colour, 0.6), "width": width}
            edge = {**common, "mode": "lines", "line": line, "hoverinfo": "skip"}
            yield {**edge, "y": _plain(low)}
            fill = {"fill": "tonexty", "fillcolor": _faint(look.colour, alpha)}
            yield {**edge, "y": _plain(high), **fill}
    yield {
        **common,
        "y": _plain(one.values),
        "mode": "lines" if len(one.rounds) >= MANY_ROUNDS else "lines+markers",
        "line": {"color": look.colour, "dash": look.dash or "solid", "width": 2},
        "marker": {"symbol": look.symbol, "size": 7},
        "hovertext": [_hover(name, metric, one, i, time) for i in range(len(one.rounds))],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "hoverlabel": {"bordercolor": look.colour},
        # A band needs two rounds.
        **({"error_y": _bar(one)} if len(one.rounds) == 1 else {}),
    }


def _bar(one: Series) -> dict[str, Any]:
    """Return plotly's error bar between the ends of the band."""
    above, below = _plain(one.highs - one.values), _plain(one.values - one.lows)
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, "width": 4}


def _plain(values: Floats) -> list[float | None]:
    """Return the values as JSON has them: an unknown one is None."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _faint(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _hover(name: str, metric: str, one: Series, i: int, time: Clock) -> str:
    spread, seconds = one.spreads[i], one.seconds[i]
    wall = f", {seconds / time.seconds:.3g} {time.unit}" if np.isfinite(seconds) else ""
    return "<br>".join(
        [
            f"<b>{literal(name)}</b>",
            f"{metric} {one.values[i]:.4g}" + _uncertain(one, i),
            *([f"standard deviation over clients {spread:.2g}"] if np.isfinite(spread) else []),
            f"round {one.rounds[i]:.0f}, {one.pairs[i]:,.0f} pairs{wall}",
        ]
    )


def _uncertain(one: Series, i: int) -> str:
    if np.isfinite(one.errors[i]):
        return f" ± {one.errors[i]:.2g}"
    return f" [{one.lows[i]:.4g}, {one.highs[i]:.4g}]" if np.isfinite(one.lows[i]) else ""


def _layout(drawn: Mapping[str, Series], time: Clock) -> dict[str, Any]:
    rounds = [float(x) for one in drawn.values() for x in one.rounds]
    x_axes = {
        "pairs": {"title": "pairs trained", **ticks()},
        "rounds": {"title": "round", **ticks(rounds)},
        "time": {"title": f"wall-clock time ({time.unit})", **ticks()},
    }
    axes = {"xaxis": axis(x_axes["pairs"]["title"], rangemode="tozero"), "yaxis": axis("", automargin=True)}
    return layout(height=300, hovermode="closest", meta=x_axes, **axes)


def _describe(metric: str, drawn: Mapping[str, Series]) -> str:
    ends = [
        f"{name} from {one.values[0]:.4g} at round {one.rounds[0]:.0f} to {one.values[-1]:.4g} at {one.rounds[-1]:.0f}"
        for name, one in drawn.items()
    ]
    return f"{metric} on the test pairs: {'; '.join(ends)}."
