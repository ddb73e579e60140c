"""The page's figures of the clients: the first seed's partition, weights and decay."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from fed.config.explain import counted
from fed.reports.page_figures import Plot, axis, layout, literal, ticks
from fed.reports.runs import Method, Run

# Paul Tol's "light", made for areas beside each other; none is a method's colour.
COLOURS = ("#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00")
OTHERS = "#DDDDDD"
NO_GROUP = "(no group)"
MOST_WRITTEN = 12  # clients or rounds up to which each cell has room for its number
# Metrics of the clients that a run records: split, metric, name on the page.
RECORDED = (("aggregate", "weight", "weight in the average"), ("train", "decay", "decay"))
UNDECAYED = 1.0


class Grid(NamedTuple):
    """One metric of a method's clients by client and round."""

    method: str
    metric: str
    title: str
    of_clients: dict[int, dict[int, float]]

    @property
    def values(self) -> list[float]:
        """The values of all clients and rounds."""
        return [value for by_round in self.of_clients.values() for value in by_round.values()]

    @property
    def is_constant(self) -> bool:
        """True if all values are the same."""
        return math.isclose(min(self.values), max(self.values), rel_tol=1e-9)


def partitions(methods: Sequence[Method]) -> list[Plot]:
    """Return a figure for each partition of the pairs that occurs; as a rule all methods share one."""
    alike: dict[str, list[Method]] = {}
    for method in methods:
        clients = method.runs[0].partition["clients"]
        key = json.dumps([[client["num_rows"], client["groups"]] for client in clients], sort_keys=True)
        alike.setdefault(key, []).append(method)
    return [_partition(sharing, len(alike) == 1) for sharing in alike.values()]


def _partition(methods: Sequence[Method], of_all: bool) -> Plot:
    clients = methods[0].runs[0].partition["clients"]
    groups = _groups(clients)
    data = []
    for group, (colour, members) in groups.items():
        counts = [sum(client["groups"].get(member, 0) for member in members) for client in clients]
        data.append(_bars(group, colour, counts, [client["num_rows"] for client in clients]))
    sizes = [client["num_rows"] for client in clients]
    title = "All methods" if of_all else ", ".join(method.name for method in methods)
    each = f"{min(sizes):,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"
    num_groups = sum(len(members) for _, members in groups.values())
    description = (
        f"{counted(len(clients), 'client')} with {each} pairs each, {sum(sizes):,} in all, of "
        f"{counted(num_groups, 'group')}; those that clients hold out are counted."
    )
    rows = layout(height=_height(len(sizes)), barmode="stack", bargap=0.15, hovermode="closest")
    axes = {"xaxis": axis("pairs"), "yaxis": _client_axis(len(sizes))}
    legend = [(colour, group) for group, (colour, _) in groups.items()]
    return Plot(title, description, {"data": data, "layout": {**rows, **axes}}, legend)


def _groups(clients: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, list[str]]]:
    """Return colour and groups by the name in the legend, the largest first; many small groups share one name."""
    total: Counter[str] = Counter()
    for client in clients:
        total.update(client["groups"])
    largest = [group for group, _ in total.most_common()]
    own = largest if len(largest) <= len(COLOURS) else largest[: len(COLOURS)]
    found = {group or NO_GROUP: (COLOURS[i], [group]) for i, group in enumerate(own)}
    rest = largest[len(own) :]
    return {**found, f"{len(rest)} other groups": (OTHERS, rest)} if rest else found


def _bars(group: str, colour: str, counts: Sequence[int], sizes: Sequence[int]) -> dict[str, Any]:
    shares = zip(counts, sizes, strict=True)
    return {
        "type": "bar",
        "orientation": "h",
        "name": literal(group),
        "x": list(counts),
        "y": list(range(len(counts))),
        "marker": {"color": colour},
        "hovertext": [
            f"<b>client {k}</b><br>{literal(group)}: {n:,} of {of:,} pairs" for k, (n, of) in enumerate(shares)
        ],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def heat_maps(methods: Sequence[Method]) -> list[Plot]:
    """Return a heat map of the weight and the decay of each federated method's clients, unless all are the same."""
    return [_heat_map(grid, limits) for grid, limits in _grids(methods) if not grid.is_constant]


def constants(methods: Sequence[Method]) -> list[str]:
    """Return sentences on the metrics that `heat_maps` leaves out."""
    flat = (grid for grid, _ in _grids(methods) if grid.is_constant)
    return [f"{grid.method}: {grid.title} is {grid.values[0]:.4g} for every client in every round." for grid in flat]


def _grids(methods: Sequence[Method]) -> Iterator[tuple[Grid, tuple[float, float]]]:
    """Yield each recorded metric with the limits of its colours, which all methods share."""
    federated = [method for method in methods if method.mode == "federated"]
    for method in federated:
        for split, metric, title in RECORDED:
            grid = Grid(method.name, metric, title, method.runs[0].of_clients(split, metric))
            if grid.values:
                everyone = [x for other in federated for x in _values(other.runs[0], split, metric)]
                yield grid, colour_limits(everyone, UNDECAYED if metric == "decay" else 2 * fmean(everyone))


def colour_limits(values: Sequence[float], top: float) -> tuple[float, float]:
    """Return the limits of the colours: 0 and `top`, or farther if a value lies beyond.

    Limits at the smallest and the largest value would show weights of 0.245 and 0.252 as black and yellow. The mean
    weight is the equal share of a round's clients: with twice that as `top`, equal clients have the colour between.
    """
    return min(0.0, *values), max(top, *values)


def _values(run: Run, split: str, metric: str) -> list[float]:
    return [value for by_round in run.of_clients(split, metric).values() for value in by_round.values()]


def _heat_map(grid: Grid, limits: tuple[float, float]) -> Plot:
    clients = range(max(grid.of_clients) + 1)
    rounds = sorted({server_round for by_round in grid.of_clients.values() for server_round in by_round})
    data = {
        "type": "heatmap",
        "x": rounds,
        "y": list(clients),
        # A client that was not sampled or failed in a round leaves a gap.
        "z": [[grid.of_clients.get(k, {}).get(server_round) for server_round in rounds] for k in clients],
        "zmin": limits[0],
        "zmax": limits[1],
        "colorscale": "Cividis",
        "colorbar": {"thickness": 10, "outlinewidth": 0, "nticks": 6, "tickformat": ".4~g"},
        **({"texttemplate": "%{z:.3f}"} if len(rounds) <= MOST_WRITTEN and len(clients) <= MOST_WRITTEN else {}),
        "hoverongaps": False,
        "hovertemplate": f"client %{{y}}, round %{{x}}<br>{grid.metric} %{{z:.4~g}}<extra></extra>",
    }
    title, lowest, highest = f"{grid.method}: {grid.title}", min(grid.values), max(grid.values)
    description = f"{title}, {len(grid.of_clients)} clients, {len(rounds)} rounds, from {lowest:.4g} to {highest:.4g}."
    axes = {
        "xaxis": axis("round", showgrid=False, **ticks(rounds)),
        "yaxis": _client_axis(len(clients), showgrid=False),
    }
    figure = {"data": [data], "layout": layout(height=_height(len(clients)), **axes)}
    return Plot(title, description, figure)


def _height(clients: int) -> int:
    """Return the pixels in which so many rows can be told apart."""
    return 90 + max(100, clients * (24 if clients <= 12 else 14 if clients <= 40 else 8))


def _client_axis(clients: int, **more: Any) -> dict[str, Any]:
    return axis("client", autorange="reversed", dtick=1 if clients <= 20 else 5 if clients <= 50 else 10, **more)
