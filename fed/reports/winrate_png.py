"""A picture of win rates against rounds: plain, and as if both responses were equally long."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fed.files import writing
from fed.reports.style import COLOURS, GREY, dress, new_figure, ticks_at_rounds

RATES = {"win_rate": "win rate", "length_controlled": "win rate at equal length"}
MARKERS = "osD^v"


def winrate_picture(rates: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw rates with their 95 % intervals, a line for each policy and opponent.

    Args:
        rates: Each has `model`, `round`, `against`, and by each name in `RATES` a rate, its `_low` and its `_high`.
        path: The PNG.

    Raises:
        CannotWrite: If the disk refuses it.
    """
    figure = new_figure(9.6, 4.2)
    lines: dict[str, list[Mapping[str, Any]]] = {}
    for rate in sorted(rates, key=lambda rate: rate["round"]):
        lines.setdefault(f"{rate['model']} against {rate['against']}", []).append(rate)
    for place, (name, title) in enumerate(RATES.items()):
        axes = figure.add_subplot(1, len(RATES), place + 1)
        axes.axhline(0.5, color=GREY, linewidth=0.8, linestyle="--")
        for number, (label, own) in enumerate(lines.items()):
            rounds, values = [rate["round"] for rate in own], [rate[name] for rate in own]
            ends = [
                [rate[name] - rate[f"{name}_low"] for rate in own],
                [rate[f"{name}_high"] - rate[name] for rate in own],
            ]
            style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
            axes.errorbar(rounds, values, ends, label=label, capsize=3, linewidth=1.8, markersize=4, **style)
        axes.set_ylim(0, 1)
        axes.set_xlabel("round")
        axes.set_ylabel(title)
        ticks_at_rounds(axes)
        dress(axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a folder's name may contain dollar signs
    with writing(path):
        figure.savefig(path, format="png")
