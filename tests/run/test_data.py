"""The rows of a run by owner, as its settings and its files say."""

from pathlib import Path

import pytest

from fed.config import composing
from run.data import OwnedRows, reading_of, shared_out
from support.rows import write


def owned(*typed: str) -> OwnedRows:
    request = composing.request(["client_num_in_total=2", *typed])
    return shared_out(request.config, request.given, reading_of(request.config, supervised=False))


def rows(*prompts: str) -> list[dict[str, str]]:
    return [{"prompt": prompt, "chosen": " yes", "rejected": " no"} for prompt in prompts]


def numbered(count: int, word: str = "question") -> list[dict[str, str]]:
    return rows(*(f"{word} {i}" for i in range(count)))


def prompts(found: OwnedRows) -> dict[str, set[str]]:
    clients = [row for client in found.split.clients for row in (*client.train, *client.held_out)]
    every = {"server": found.split.validation, "test": found.split.test, "clients": clients}
    return {owner: {row.prompt for row in own} for owner, own in every.items()}


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Return a folder as the hub, trl, axolotl and LLaMA-Factory write it."""
    folder = tmp_path / "three"
    for name, count in (("train", 20), ("validation", 3), ("test", 4)):
        write(folder / f"{name}.jsonl", numbered(count, name))
    return folder


def test_validation_files_are_the_servers_and_nobody_trains_on_them(three: Path) -> None:
    found = prompts(owned("datasets=[files]", f"data_dir={three}"))
    assert found["server"] == {f"validation {i}" for i in range(3)}
    assert found["clients"] == {f"train {i}" for i in range(20)} and found["test"] == {f"test {i}" for i in range(4)}


def test_validation_files_are_the_servers_beside_clients_with_files_of_their_own(three: Path, tmp_path: Path) -> None:
    files = [write(tmp_path / f"client-{k}.jsonl", numbered(6, f"own {k},")) for k in range(2)]
    own = ["partition=own", "accuracy_on=server", f"client_data=[{files[0]},{files[1]}]"]
    found = prompts(owned(*own, "datasets=[files]", f"data_dir={three}"))
    assert found["server"] == {f"validation {i}" for i in range(3)}
    assert found["clients"] == {f"own {k}, {i}" for k in range(2) for i in range(6)}


def test_a_share_for_the_server_is_refused_where_validation_files_are_its_pairs(three: Path) -> None:
    with pytest.raises(ValueError, match=r"server_fraction=0\.3 has no effect: the data has validation files"):
        owned("datasets=[files]", f"data_dir={three}", "server_fraction=0.3")


def dialogues(numbers: range) -> list[dict[str, str]]:
    """Return dialogues with one system text as their first turn."""
    return rows(*(f"\n\nHuman: Be kind.\n\nAssistant: Yes.\n\nHuman: {i}?\n\nAssistant:" for i in numbers))


@pytest.mark.parametrize("files", [{"all": range(30)}, {"train": range(25), "test": range(25, 30)}])
def test_dialogues_that_begin_alike_are_divided(tmp_path: Path, files: dict[str, range]) -> None:
    for name, numbers in files.items():
        write(tmp_path / f"{name}.jsonl", dialogues(numbers))
    found = prompts(owned("datasets=[files]", f"data_dir={tmp_path}", "server_fraction=0.2"))
    assert all(found.values()) and sum(map(len, found.values())) == 30, "each is one owner's"


def test_dialogues_of_a_clients_own_file_that_begin_alike_are_told_apart(tmp_path: Path) -> None:
    """A client holds some out to evaluate on, by whole conversations."""
    files = [write(tmp_path / f"client-{k}.jsonl", dialogues(range(20 * k, 20 * k + 20))) for k in range(2)]
    own = ["partition=own", "accuracy_on=client", f"client_data=[{files[0]},{files[1]}]", "datasets=[]"]
    found = owned(*own, "client_eval_fraction=0.2")
    assert [(len(client.train), len(client.held_out)) for client in found.split.clients] == [(16, 4)] * 2


def test_with_the_published_partition_the_server_has_the_last_pairs_in_order(tmp_path: Path) -> None:
    """A fifth of 100 training rows, and the two that three equal blocks of the others leave."""
    write(tmp_path / "train.jsonl", numbered(100))
    write(tmp_path / "test.jsonl", numbered(4, "test"))
    typed = ["datasets=[files]", f"data_dir={tmp_path}", "strategy=fedpo_published", "partition=contiguous"]
    found = owned(*typed, "client_num_in_total=3", "server_fraction=0.2", "client_eval_fraction=0")
    assert [row.prompt for row in found.split.validation] == [f"question {i}" for i in range(78, 100)]
    blocks = [[row.prompt for row in client.train] for client in found.split.clients]
    assert blocks == [[f"question {i}" for i in range(26 * k, 26 * k + 26)] for k in range(3)]


def test_other_columns_are_kept_and_empty_prompts_are_counted_over_all_files(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{**row, "score": 1} for row in numbered(20)])
    write(tmp_path / "test.jsonl", [*numbered(4, "test"), {**rows("")[0], "source": "x"}])
    found = owned("datasets=[files]", f"data_dir={tmp_path}")
    assert found.unread == () and found.skipped == {"empty prompt": 1}
    assert {row.extra for row in found.split.pool} == {(("score",), ("1",))}
