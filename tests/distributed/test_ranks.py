"""The processes of a run exchange values and errors."""

import pytest
import torch

from fed.distributed.ranks import ALONE, ONE_PROCESS, Ranks, arrange
from support.ranks import in_ranks

CPU = torch.device("cpu")


def everyone() -> Ranks:
    return arrange(1, CPU).world


def mistaken() -> None:
    raise ValueError("no such model")


def test_alone_everything_is_ones_own_and_nothing_is_sent() -> None:
    assert arrange(1, CPU) is ONE_PROCESS
    assert ALONE.is_first and ALONE.count == 1
    assert ALONE.gather("mine") == ["mine"]
    assert ALONE.from_first("mine") == ALONE.from_rank(0, "mine") == ALONE.from_first_or_raise(lambda: "mine") == "mine"
    tensor = torch.tensor([1.0, 2.0])
    assert ALONE.sum(tensor) is tensor and tensor.tolist() == [1.0, 2.0]
    assert ALONE.sum_metrics({"loss": 0.1}) == {"loss": 0.1}
    with pytest.raises(ValueError, match="no such model"):
        ALONE.from_first_or_raise(mistaken)


def exchange() -> dict[str, object]:
    ranks = everyone()
    mine = torch.tensor([ranks.index + 1.0, 0.1 * ranks.index])
    same = ranks.sum(mine)
    # Each process adds in another order: sums belong to names, not to places.
    metrics = [("loss", 0.5 + ranks.index), ("accuracy", 0.1 * (1 - ranks.index))]
    calls = []

    def make() -> str:
        calls.append(ranks.index)
        return f"made by {ranks.index}"

    return {
        "is_first": ranks.is_first,
        "gather": ranks.gather({"index": ranks.index}),
        "from_first": ranks.from_first(f"of {ranks.index}"),
        "from_rank": ranks.from_rank(1, f"of {ranks.index}"),
        "in place": same is mine,
        "sum": mine.tolist(),
        "metrics": ranks.sum_metrics(dict(metrics if ranks.is_first else reversed(metrics))),
        "made": (ranks.from_first_or_raise(make), calls),
    }


def test_two_processes_learn_what_each_has() -> None:
    first, second = in_ranks(2, exchange)
    assert (first.pop("is_first"), second.pop("is_first")) == (True, False)
    assert (first.pop("made"), second.pop("made")) == (("made by 0", [0]), ("made by 0", []))
    assert first == second
    assert first["gather"] == [{"index": 0}, {"index": 1}]
    assert (first["from_first"], first["from_rank"], first["in place"]) == ("of 0", "of 1", True)
    assert first["sum"] == torch.tensor([3.0, 0.1]).tolist()
    assert first["metrics"] == {"loss": 2.0, "accuracy": 0.1}


def mistakes() -> tuple[str, list[int]]:
    ranks = everyone()
    try:
        ranks.from_first_or_raise(mistaken)
    except ValueError as error:
        return str(error), ranks.gather(ranks.index)  # and they still understand each other
    return "", []


def test_a_mistake_that_the_first_process_finds_is_a_value_error_in_all_of_them() -> None:
    assert in_ranks(2, mistakes) == [("no such model", [0, 1])] * 2


def arrangements() -> list[object]:
    found: list[object] = []
    for groups in (1, 2, 4):
        mesh = arrange(groups, CPU)
        own, peers = mesh.own.gather(mesh.world.index), mesh.groups.gather(mesh.world.index)
        found.append((own, peers, None if mesh.device_mesh is None else mesh.device_mesh.size()))
    for groups in (3, 8):
        try:
            arrange(groups, CPU)
        except ValueError as error:
            found.append(str(error))
    return found


def test_processes_are_arranged_in_groups_of_neighbours_and_indivisible_groups_are_refused() -> None:
    """2 groups of 4 processes hold models on 0 1 and 2 3; 0 and 2 hold the same part, and so do 1 and 3."""
    found = in_ranks(4, arrangements)
    for rank, (whole, halves, each, *refused) in enumerate(found):
        assert whole == ([0, 1, 2, 3], [rank], 4)
        assert halves == ([rank // 2 * 2, rank // 2 * 2 + 1], [rank % 2, rank % 2 + 2], 2)
        assert each == ([rank], [0, 1, 2, 3], None)
        assert ["clients_in_parallel=3 does not divide the 4" in refused[0], len(refused)] == [True, 2]
