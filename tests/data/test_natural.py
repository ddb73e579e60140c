"""One client for each value of a column, and what is left out."""

import json
from pathlib import Path

import pytest

from fed.data.divide import partition
from fed.data.partition import NaturalPartitioner
from fed.data.rows import Extra, Preference
from support.command_line import SMALL, CommandLine


def rows(**sizes: int) -> list[Preference]:
    """Return so many pairs of each user, all users about the same questions."""
    return [
        Preference(f"q{n}", f"good {user}{n}", "bad", extra=Extra(("user",), (user,)))
        for user, size in sizes.items()
        for n in range(size)
    ]


def divided(pairs: list[Preference], clients: int | None = None, **how: int) -> tuple[dict[str, int], list[str]]:
    found = NaturalPartitioner(clients, "user", **how)
    parts = partition(pairs, found, clients, 0, "user")
    assert all({pairs[i].column("user") for i in part} == {name} for name, part in zip(found.names, parts, strict=True))
    return {name: len(part) for name, part in zip(found.names, parts, strict=True)}, found.remarks


def test_every_value_is_a_client_also_where_several_judged_one_question() -> None:
    assert divided(rows(b=3, a=5, c=1)) == ({"a": 5, "b": 3, "c": 1}, ["clients by user: 3 of 3"])


def test_numbers_are_in_the_order_of_numbers() -> None:
    assert list(divided(rows(**{"10": 1, "9": 1, "x": 1, "2": 1}))[0]) == ["2", "9", "10", "x"]


def test_small_clients_are_left_out_and_further_ones_drawn_by_seed() -> None:
    pairs = rows(a=5, b=2, c=6, d=7, e=1)
    assert divided(pairs, min_pairs=3) == (
        {"a": 5, "c": 6, "d": 7},
        ["clients by user: 3 of 5; 2 with fewer than 3 pairs are left out (3 pairs)"],
    )
    drawn = [divided(pairs, min_pairs=2, max_clients=2, seed=seed) for seed in range(6)]
    assert len({tuple(found) for found, _ in drawn}) > 2
    assert all(f"2 were not drawn ({20 - sum(found.values())} pairs)" in remark for found, (remark,) in drawn)
    assert divided(pairs, 2, min_pairs=2, seed=1)[0] == divided(pairs, min_pairs=2, max_clients=2, seed=1)[0]


def test_pairs_without_a_value_have_no_client() -> None:
    assert divided([*rows(a=2), Preference("q9", "c", "r"), *rows(b=2)])[0] == {"a": 2, "b": 2}


def test_more_clients_than_the_data_has_are_refused() -> None:
    with pytest.raises(ValueError, match="client_num_in_total=3 but the data has 2 clients by user; lower it"):
        divided(rows(a=1, b=1), 3)
    told = "has 1 clients by user with 2 pairs or more, of which partition.max_clients=1 are taken; lower it"
    with pytest.raises(ValueError, match=told):
        divided(rows(a=2, b=1, c=2), 3, min_pairs=2, max_clients=1)
    told = "no client by user has 4 of the 5 pairs to share out; the largest of 3 has 2: lower partition.min_pairs"
    with pytest.raises(ValueError, match=told):
        divided(rows(a=2, b=1, c=2), min_pairs=4)
    with pytest.raises(ValueError, match=r"partition.min_pairs=0 is out of range; expected at least 1"):
        divided(rows(a=2), min_pairs=0)
    with pytest.raises(ValueError, match="the data has no column 'name' to divide by; it has group, prompt, user"):
        partition(rows(a=2), NaturalPartitioner(None, "name"), None, 0, "name")


def test_a_run_takes_all_clients_of_the_data(command_line: CommandLine, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    records = [{"prompt": f"q{n}", "chosen": f"c{n}", "rejected": "r", "user": n % 4 if n else 9} for n in range(60)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    own = ["datasets=[files]", f"data_dir={path}", "partition=natural", "partition.column=user"]
    result = command_line(*SMALL, *own, "client_num_in_total=null", "partition.min_pairs=2", "clients_per_round=2")
    assert result.code == 0, result.err
    assert "fedpo: federated, 4 clients x" in result.out and "clients by user: 4 of " in result.out
    described = json.loads((result.run / "partition.json").read_text())
    assert [client["name"] for client in described["clients"]] == ["0", "1", "2", "3"]
    again = command_line(*SMALL, *own, "client_num_in_total=4", "partition.min_pairs=2", "clients_per_round=2")
    assert again.lines() == result.lines()


def test_all_clients_are_for_natural_ones_only(command_line: CommandLine) -> None:
    found = command_line(*SMALL, "client_num_in_total=null")
    assert found.code == 2 and "so it needs partition=natural" in found.err
