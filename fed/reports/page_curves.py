"""Curves of the methods on the test pairs, over pairs, rounds or wall-clock time, as figures of the page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fed.reports.compare_png import CLOCK, Floats, Series, series
from fed.reports.curves import MANY_ROUNDS, PANELS
from fed.reports.runs import Method
from fed.reports.style import Plot, Style, axis, layout, literal, styles, ticks

CLEAR, PALE = 0.16, 0.07  # bands: standard error, spread over clients


class Clock(NamedTuple):
    """The unit in which wall time is told."""

    unit: str
    seconds: float


def curves(methods: Sequence[Method]) -> list[Plot]:
    """A figure for each metric that was measured; `meta` of a trace holds its x values, `meta` of a layout its x axes.

    Lines are means over seeds; see `fed.reports.compare_png.series` for their bands.
    """
    looks = styles([method.name for method in methods])
    found = {metric: {method.name: series(method, metric) for method in methods} for metric in PANELS}
    clock = _clock([one for drawn in found.values() for one in drawn.values()])
    plots = []
    for metric, every in found.items():
        drawn = {name: one for name, one in every.items() if one.rounds.size}
        if drawn:
            data = [trace for name, one in drawn.items() for trace in _traces(name, metric, one, looks[name], clock)]
            figure = {"data": data, "layout": _layout(drawn, clock)}
            plots.append(Plot(" ".join(PANELS[metric].split()), _describe(metric, drawn), figure))
    return plots


def _clock(every: Sequence[Series]) -> Clock:
    longest = np.nanmax([0.0, *(x for one in every for x in one.seconds)])
    return next(Clock(unit, seconds) for unit, seconds, most in CLOCK if longest < most)


def _traces(name: str, metric: str, one: Series, look: Style, clock: Clock) -> Iterator[dict[str, Any]]:
    """Two edges of each band that is known, and the line."""
    xs = {"pairs": _plain(one.pairs), "rounds": _plain(one.rounds), "time": _plain(one.seconds / clock.seconds)}
    common = {"type": "scatter", "name": literal(name), "x": xs["pairs"], "meta": {"method": name, **xs}}
    # A line at the edge of the paler band, or others would hide it.
    for half, alpha, width in ((one.spreads, PALE, 0.6), (one.errors, CLEAR, 0.0)):
        if np.isfinite(half).all():
            line = {"color": _faint(look.colour, 0.6), "width": width}
            edge = {**common, "mode": "lines", "line": line, "hoverinfo": "skip"}
            yield {**edge, "y": _plain(one.values - half)}
            fill = {"fill": "tonexty", "fillcolor": _faint(look.colour, alpha)}
            yield {**edge, "y": _plain(one.values + half), **fill}
    yield {
        **common,
        "y": _plain(one.values),
        "mode": "lines" if len(one.rounds) >= MANY_ROUNDS else "lines+markers",
        "line": {"color": look.colour, "dash": look.dash or "solid", "width": 2},
        "marker": {"symbol": look.symbol, "size": 7},
        "hovertext": [_hover(name, metric, one, i, clock) for i in range(len(one.rounds))],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "hoverlabel": {"bordercolor": look.colour},
        # A band needs two rounds.
        **({"error_y": {"array": _plain(one.errors), "width": 4}} if len(one.rounds) == 1 else {}),
    }


def _plain(values: Floats) -> list[float | None]:
    """As JSON knows them: what is unknown is null."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _faint(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def _hover(name: str, metric: str, one: Series, i: int, clock: Clock) -> str:
    error, spread, seconds = one.errors[i], one.spreads[i], one.seconds[i]
    time = f", {seconds / clock.seconds:.3g} {clock.unit}" if np.isfinite(seconds) else ""
    return "<br>".join(
        [
            f"<b>{literal(name)}</b>",
            f"{metric} {one.values[i]:.4g}" + (f" ± {error:.2g}" if np.isfinite(error) else ""),
            *([f"standard deviation over clients {spread:.2g}"] if np.isfinite(spread) else []),
            f"round {one.rounds[i]:.0f}, {one.pairs[i]:,.0f} pairs{time}",
        ]
    )


def _layout(drawn: Mapping[str, Series], clock: Clock) -> dict[str, Any]:
    rounds = [float(x) for one in drawn.values() for x in one.rounds]
    x_axes = {
        "pairs": {"title": "pairs trained", **ticks()},
        "rounds": {"title": "round", **ticks(rounds)},
        "time": {"title": f"wall-clock time ({clock.unit})", **ticks()},
    }
    axes = {"xaxis": axis(x_axes["pairs"]["title"], rangemode="tozero"), "yaxis": axis("", automargin=True)}
    return layout(height=300, hovermode="closest", meta=x_axes, **axes)


def _describe(metric: str, drawn: Mapping[str, Series]) -> str:
    ends = [
        f"{name} from {one.values[0]:.4g} at round {one.rounds[0]:.0f} to {one.values[-1]:.4g} at {one.rounds[-1]:.0f}"
        for name, one in drawn.items()
    ]
    return f"{metric} on the test pairs: {'; '.join(ends)}."
