"""What the page's figures have in common: how methods look, axes, and foreign text in plotly's own JSON."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# Okabe and Ito's colours without the yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# As SVG writes them, and plotly too. Fewer than colours, so that a pair of both comes back late.
DASHES = ("", "8px,3px", "3px,3px", "12px,3px,3px,3px")
SYMBOLS = ("circle", "square", "diamond", "triangle-up")


@dataclass(frozen=True)
class Plot:
    """A figure and what stands beside it."""

    title: str
    description: str  # for who cannot see it
    figure: Mapping[str, Any]  # plotly's data and layout; foreign text in it has passed `literal`
    legend: Sequence[tuple[str, str]] = ()  # colour, meaning


class Style(NamedTuple):
    """How a method's line looks, in every figure and in the legend."""

    colour: str
    dash: str
    symbol: str


def styles(names: Sequence[str]) -> dict[str, Style]:
    """A colour, a dash and a marker for each method."""
    return {
        name: Style(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], SYMBOLS[i % len(SYMBOLS)])
        for i, name in enumerate(names)
    }


def literal(text: str) -> str:
    """The text as plotly, which knows some tags, shows it letter by letter."""
    return html.escape(text, quote=False)


def layout(**more: Any) -> dict[str, Any]:
    """Font, margins and background of every figure."""
    return {
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#1a1a1a"},
        "margin": {"l": 56, "r": 14, "t": 32, "b": 46},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "hoverlabel": {"align": "left", "bgcolor": "#ffffff", "font": {"size": 13, "color": "#1a1a1a"}},
        "showlegend": False,
        **more,
    }


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with a quiet grid."""
    lines = {"gridcolor": "#e8e8e8", "linecolor": "#8a8a8a", "showline": True, "zeroline": False}
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 13}},
        "ticks": "outside",
        "tickcolor": "#8a8a8a",
        **lines,
        **more,
    }


def ticks(rounds: Sequence[float] = ()) -> dict[str, Any]:
    """An axis' ticks: of few rounds one at each, else as plotly chooses."""
    # Both are always said: plotly would keep the distance of an axis' former ticks and draw them by the million.
    if rounds and max(rounds) - min(rounds) <= 10:
        return {"tickmode": "linear", "dtick": 1}
    return {"tickmode": "auto", "dtick": None}
