"""partition.png shows how many pairs of which groups each client holds."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fed.reports import partition_png
from fed.reports.partition_png import partition_picture


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that draws these clients and returns the figure."""
    figures: list[Figure] = []
    new = partition_png.new_figure
    monkeypatch.setattr(partition_png, "new_figure", lambda *size: figures.append(new(*size)) or figures[-1])

    def draw(*clients: dict[str, Any]) -> Figure:
        described = [{"num_rows": sum(client["groups"].values()), **client} for client in clients]
        (tmp_path / "partition.json").write_text(json.dumps({"clients": described}))
        assert partition_picture(tmp_path) == tmp_path / "partition.png" and (tmp_path / "partition.png").stat().st_size
        return figures[-1]

    return draw


def heights(figure: Figure) -> dict[str, list[float]]:
    return {bars.get_label(): [bar.get_height() for bar in bars] for bars in figure.axes[0].containers}


def names(figure: Figure) -> list[str]:
    return [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_a_bar_for_each_client_in_parts_by_group(drawn: Any) -> None:
    figure = drawn({"groups": {"tea": 2}}, {"groups": {"tea": 1, "coffee": 5}}, {"groups": {"coffee": 3}})
    assert heights(figure) == {"coffee": [5, 3, 0], "tea": [1, 0, 2]}
    assert names(figure) == ["1", "2", "0"]
    assert figure.axes[0].get_title(loc="left") == "3 clients hold 11 pairs: 2 to 6, median 3"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["coffee", "tea"]


def test_clients_that_the_data_names_have_their_names(drawn: Any) -> None:
    figure = drawn({"name": "a" * 30, "groups": {"": 2}}, {"name": "$x\n", "groups": {"": 3}})
    assert names(figure) == ["\\$x?", "…" + "a" * 23] and heights(figure) == {"no group": [3, 2]}


def test_many_groups_and_many_clients_are_one_colour_without_names(drawn: Any) -> None:
    figure = drawn(*({"groups": {f"g{n}": n + 1}} for n in range(60)))
    assert heights(figure) == {"60 other groups": [float(n) for n in range(60, 0, -1)]} and not figure.legends
    figure = drawn(*({"groups": {f"g{n}": n + 1}} for n in range(9)))
    assert heights(figure)["3 other groups"] == [0, 0, 0, 0, 0, 0, 3, 2, 1]


def test_clients_elsewhere_have_no_picture(tmp_path: Path) -> None:
    (tmp_path / "partition.json").write_text('{"clients": []}')
    assert partition_picture(tmp_path) is None and not (tmp_path / "partition.png").exists()
