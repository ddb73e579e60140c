"""Everything that the page's figures have in common: axes, layout, and foreign text in plotly's own JSON."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Plot:
    """A figure of the page and the texts beside it."""

    title: str
    description: str  # for readers who cannot see it
    figure: Mapping[str, Any]  # plotly's data and layout; foreign text in it has passed `literal`
    legend: Sequence[tuple[str, str]] = ()  # colour, meaning


def literal(text: str) -> str:
    """Escape the text: plotly, which knows some tags, then shows it letter by letter."""
    return html.escape(text, quote=False)


def layout(**more: Any) -> dict[str, Any]:
    """Return the font, margins and background of every figure, with `more` of plotly's own keys."""
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
    """Return an axis with a quiet grid, with `more` of plotly's own keys."""
    lines = {"gridcolor": "#e8e8e8", "linecolor": "#8a8a8a", "showline": True, "zeroline": False}
    return {
        "title": {"text": title, "standoff": 8, "font": {"size": 13}},
        "ticks": "outside",
        "tickcolor": "#8a8a8a",
        **lines,
        **more,
    }


def ticks(rounds: Sequence[float] = ()) -> dict[str, Any]:
    """Return the keys of an axis' ticks: one at each round if there are few, else as plotly chooses."""
    # Both keys are always given: plotly would keep the distance of an axis' former ticks and draw them by the million.
    if rounds and max(rounds) - min(rounds) <= 10:
        return {"tickmode": "linear", "dtick": 1}
    return {"tickmode": "auto", "dtick": None}
