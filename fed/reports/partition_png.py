"""`partition.png` of one run: how many pairs each client holds, and of which groups, from `partition.json`."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fed.reports.style import COLOURS, FAINT, dress, new_figure
from fed.tracking.run_files import PARTITION_FILE, PARTITION_PICTURE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_NAMED = 40  # clients whose bars have names; more would run into each other
MOST_GROUPS = len(COLOURS) - 1  # groups with a colour of their own, the largest ones
MANY_GROUPS = 3 * MOST_GROUPS  # with more, a few colours would tell little


def partition_picture(run_dir: Path) -> Path | None:
    """Draw a run's `partition.png` and return its path; None if clients elsewhere have data of their own."""
    described = json.loads((run_dir / PARTITION_FILE).read_text(encoding="utf-8"))
    clients: list[dict[str, Any]] = described["clients"]
    if not clients:
        return None
    order = sorted(range(len(clients)), key=lambda k: (-clients[k]["num_rows"], k))
    totals = sum((Counter(client["groups"]) for client in clients), Counter[str]())
    figure = new_figure(min(5 + 0.22 * len(clients), 14), 4.2)
    axes = figure.add_subplot()
    _draw(axes, [clients[k]["groups"] for k in order], totals)
    sizes = [client["num_rows"] for client in clients]
    axes.set_ylabel("pairs")
    axes.set_xlabel("clients, largest first")
    axes.set_xlim(-0.6, len(clients) - 0.4)
    if len(clients) <= MOST_NAMED:
        names = [_short(str(clients[k].get("name", k))) for k in order]
        axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_title(
        f"{len(clients)} clients hold {sum(sizes):,} pairs: {min(sizes):,} to {max(sizes):,}, "
        f"median {np.median(sizes):,.0f}",
        fontsize="medium",
        loc="left",
    )
    dress(axes)
    path = run_dir / PARTITION_PICTURE
    figure.savefig(path)
    return path


def _draw(axes: "Axes", groups: list[dict[str, int]], totals: Counter[str]) -> None:
    """Draw a bar for each client, with a part for each of the largest groups and one for all others."""
    largest = [name for name, _ in totals.most_common(MOST_GROUPS if len(totals) <= MANY_GROUPS else 0)]
    below = np.zeros(len(groups))
    rest = np.array([sum(one.values()) - sum(one.get(name, 0) for name in largest) for one in groups])
    parts = [
        (name, np.array([one.get(name, 0) for one in groups]), colour)
        for name, colour in zip(largest, COLOURS, strict=False)
    ]
    for name, heights, colour in [
        *parts,
        (f"{len(totals) - len(largest)} other groups", rest, FAINT if largest else COLOURS[0]),
    ]:
        if heights.any():
            axes.bar(np.arange(len(groups)), heights, 0.9, bottom=below, color=colour, label=_short(name) or "no group")
            below = below + heights
    if 1 < len(totals) <= MANY_GROUPS:
        axes.figure.legend(loc="outside right upper", fontsize="small", frameon=False, title="group")


def _short(name: str) -> str:
    """Return the name as it can be drawn: printable, without mathematics, its last 24 characters."""
    text = "".join(character if character.isprintable() else "?" for character in name).replace("$", "\\$")
    return text if len(text) <= 24 else f"…{text[-23:]}"
