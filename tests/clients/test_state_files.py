"""A client's states on its own disk: which stay, and which one a round continues from."""

import os
from pathlib import Path

import pytest
from flwr.app import MetricRecord, RecordDict

from clients.state_files import RUNS, load_state, only_client, remove_old_runs, save_state


def save(folder: Path, server_round: int, *, every: int = 0, client_id: int = 0) -> None:
    save_state(folder, client_id, server_round, RecordDict({"client": MetricRecord({"updates": server_round})}), every)


def loaded(folder: Path, server_round: int) -> int | None:
    records = load_state(folder, 0, server_round).metric_records
    return int(records["client"]["updates"]) if records else None  # type: ignore[arg-type]


def rounds(folder: Path) -> list[int]:
    return sorted(int(path.stem.rpartition("-")[2]) for path in folder.iterdir())


@pytest.mark.parametrize(("every", "expected"), [(0, [9]), (1, [7, 8, 9]), (2, [4, 6, 8, 9]), (5, [5, 9])])
def test_the_newest_state_stays_and_those_of_the_servers_last_three_checkpoints(
    tmp_path: Path, every: int, expected: list[int]
) -> None:
    for server_round in range(1, 10):
        save(tmp_path, server_round, every=every)
    assert rounds(tmp_path) == expected


def test_a_round_continues_from_the_state_before_it(tmp_path: Path) -> None:
    for server_round in (2, 4, 5):
        save(tmp_path, server_round, every=2)
    assert [loaded(tmp_path, r) for r in (1, 2, 3, 4, 5, 6)] == [None, None, 2, 2, 4, 5]


def test_a_resumed_run_removes_the_states_of_rounds_that_it_repeats(tmp_path: Path) -> None:
    for server_round in (1, 2, 3, 2):
        save(tmp_path, server_round, every=1)
    assert rounds(tmp_path) == [1, 2] and loaded(tmp_path, 9) == 2


def test_a_damaged_state_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for server_round in (1, 2):
        save(tmp_path, server_round, every=1)
    next(tmp_path.glob("*round-2*")).write_bytes(b"damaged")
    assert loaded(tmp_path, 3) == 1


def test_a_client_knows_its_number_if_only_one_has_files(tmp_path: Path) -> None:
    assert only_client(tmp_path) is None
    save(tmp_path, 1, client_id=7)
    assert only_client(tmp_path) == 7
    save(tmp_path, 1, client_id=8)
    assert only_client(tmp_path) is None


def test_files_of_other_names_or_owners_are_none(tmp_path: Path) -> None:
    save(tmp_path, 1, client_id=7)
    for name in ("client-x-round-1.safetensors", "client-7-round-x.safetensors", "client-7-round--5.safetensors"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "client-8-round-1.safetensors").mkdir()
    (tmp_path / "client-7-round-9.safetensors").symlink_to(tmp_path / "client-7-round-1.safetensors")
    assert only_client(tmp_path) == 7 and len(load_state(tmp_path, 7, 10)) > 0
    assert (tmp_path / "client-7-round-1.safetensors").stat().st_mode & 0o777 == 0o600
    (tmp_path / "client-7-round-1.safetensors").chmod(0o666)
    assert only_client(tmp_path) is None and len(load_state(tmp_path, 7, 10)) == 0


def test_the_files_of_old_runs_are_removed(tmp_path: Path) -> None:
    for number in range(RUNS + 3):
        (tmp_path / str(number)).mkdir()
        os.utime(tmp_path / str(number), (number, number))
    remove_old_runs(tmp_path / "0")
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [0, *range(4, RUNS + 3)]
