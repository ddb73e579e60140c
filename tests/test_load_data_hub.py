"""Data sets of the hub are read as its tables have them; a hub out of reach is one clear error."""

import sys
import types

import pytest

from fed.data.hub import HubSettings
from fed.data.source import Reading
from load_data import load
from support.rows import dialogue, pairs, write


def install_hub(monkeypatch, load_dataset):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_hh_reads_four_folders_of_the_hub(monkeypatch):
    def load_dataset(hub, data_dir, split, cache_dir):
        assert (hub, cache_dir) == ("Anthropic/hh-rlhf", "cache")
        return [dialogue(f"{data_dir} {split}", " a", " b")]

    install_hub(monkeypatch, load_dataset)
    rows = load(["hh"], "train", data_dir=None, seed=0, reading=Reading(hub=HubSettings(cache_dir="cache"))).rows
    assert [row.group for row in rows] == [
        "harmless-base",
        "helpful-base",
        "helpful-online",
        "helpful-rejection-sampled",
    ]
    assert rows[0].conversation == "harmless-base train"


def test_hh_base_reads_two_folders_of_the_hub(monkeypatch):
    def load_dataset(hub, data_dir, split, cache_dir):
        return [dialogue(f"{data_dir} {split}", " a", " b")]

    install_hub(monkeypatch, load_dataset)
    rows = load(["hh_base"], "test", data_dir=None, seed=0).rows
    assert [row.conversation for row in rows] == ["harmless-base test", "helpful-base test"]


def test_a_table_of_the_hub_that_cannot_be_read_is_one_clear_error(monkeypatch):
    def load_dataset(*args, **kwargs):
        yield dialogue("q", " a", " b")
        raise OSError("the cached file is damaged")

    install_hub(monkeypatch, load_dataset)
    with pytest.raises(
        ValueError, match=r"^cannot download Anthropic/hh-rlhf from the hub \(the cached file is damaged\)"
    ):
        load(["hh"], "train", data_dir=None, seed=0)


@pytest.mark.parametrize(("offline", "told"), [("0", ""), ("1", "HF_HUB_OFFLINE is set: unset it, or ")])
def test_an_unreachable_hub_is_one_clear_error(monkeypatch, offline, told):
    monkeypatch.setenv("HF_HUB_OFFLINE", offline)

    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route\nsecond line")

    install_hub(monkeypatch, load_dataset)
    with pytest.raises(
        ValueError, match=rf"^cannot download stanfordnlp/SHP from the hub \(no route\); {told}give data_dir="
    ):
        load(["shp"], "train", data_dir=None, seed=0)


def hub_folder(tmp_path, monkeypatch, **sizes):
    """Write a data set where the library finds it by a name like one of the hub."""
    monkeypatch.chdir(tmp_path)
    for split, size in sizes.items():
        chosen = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes"}]
        records = [
            {"prompt": f"q{n}", "chosen": [{**chosen[0], "content": f"q{n}"}, chosen[1]], "user": n}
            | {"rejected": [{**chosen[0], "content": f"q{n}"}, {**chosen[1], "content": "no"}]}
            for n in range(size)
        ]
        write(tmp_path / "owner" / "name" / f"{split}.jsonl", records)


def of_hub(split, **settings):
    return load(["owner/name"], split, data_dir=None, seed=0, reading=Reading(hub=HubSettings(**settings)))


def test_any_name_of_the_hub_is_read_by_the_form_of_its_records(tmp_path, monkeypatch):
    hub_folder(tmp_path, monkeypatch, train=20, validation=3, test=5)
    found = {split: of_hub(split, cache_dir=str(tmp_path / "cache")) for split in ("train", "validation", "test")}
    assert {split: len(loaded.rows) for split, loaded in found.items()} == {"train": 20, "validation": 3, "test": 5}
    row = found["train"].rows[3]
    assert row.prompt.turns[0].content == "q3" and row.chosen.content == "yes" and row.extra == (("user",), ("3",))
    assert row.group == "name" and found["train"].forms == ("pairs of chosen and rejected",)


def test_a_data_set_of_the_hub_without_a_test_split_is_divided_by_conversation(tmp_path, monkeypatch):
    hub_folder(tmp_path, monkeypatch, train=20)
    assert [len(of_hub(split, cache_dir=str(tmp_path / "cache")).rows) for split in ("train", "test")] == [18, 2]


def test_splits_of_the_hub_have_the_names_that_are_given(tmp_path, monkeypatch):
    hub_folder(tmp_path, monkeypatch, train=20, test=5)
    cache = str(tmp_path / "cache")
    assert len(of_hub("train", train_split="test", test_split="train", cache_dir=cache).rows) == 5
    with pytest.raises(ValueError, match=r"owner/name has no split 'prefs' but train, test; set train_split="):
        of_hub("train", train_split="prefs", cache_dir=cache)


def test_files_beside_a_name_of_the_hub_are_read_in_its_place(tmp_path):
    write(tmp_path / "name" / "a.jsonl", pairs(20))
    found = load(["owner/name"], "train", data_dir=str(tmp_path), seed=0)
    assert len(found.rows) == 18
