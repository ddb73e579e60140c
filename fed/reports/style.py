"""The look of every picture: colours, lines, figures and axes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # matplotlib is imported where something is drawn: it takes most of a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Transform

# Okabe and Ito's colours without the yellow, which is too pale for a line on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GRID, FAINT, GREY = "#E4E4E4", "#9A9A9A", "#777777"
# As SVG writes them, and plotly too. Fewer than colours, so that a pair of both comes back late.
DASHES = ("", "8px,3px", "3px,3px", "12px,3px,3px,3px")
SYMBOLS = ("circle", "square", "diamond", "triangle-up")
MANY_ROUNDS = 25  # from here on markers would hide the line
# Labels of the metrics that have a panel.
PANELS = {
    "accuracy": "accuracy (share of pairs)",
    "margin": "reward margin (β · nats)",
    "loss": "loss (nats)",
    "loss_per_token": "loss per token (nats)",
    "log_ratio": "log reference / policy\n(nats per response)",
}


class Style(NamedTuple):
    """The look of a method's line, in every figure and in the legend."""

    colour: str
    dash: str
    symbol: str


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return a colour, a dash and a marker for each method."""
    return {
        name: Style(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], SYMBOLS[i % len(SYMBOLS)])
        for i, name in enumerate(names)
    }


def new_figure(width: float, height: float) -> "Figure":
    """Return an empty figure of this size, in inches, which arranges its panels and legends by itself."""
    # pyplot would keep the figure alive and choose a backend for the whole process; a bare figure draws with Agg.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def dress(axes: "Axes") -> None:
    """Give the axes a quiet grid behind the lines, and no frame above and to the right."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def ticks_at_rounds(axes: "Axes") -> None:
    """Place the ticks of the x-axis at whole rounds."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def shifted(axes: "Axes", points: float) -> "Transform":
    """Return the axes' coordinates moved to the right, so that things with the same x stand side by side."""
    from matplotlib.transforms import ScaledTranslation

    return axes.transData + ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
