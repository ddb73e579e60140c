"""Data sets of the hub are read as its tables have them; a hub out of reach is one clear error."""

import sys
import types

import pytest

from load_data import load
from support.rows import dialogue


def install_hub(monkeypatch, load_dataset):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_hh_reads_four_folders_of_the_hub(monkeypatch):
    def load_dataset(hub, data_dir, split, cache_dir):
        assert (hub, cache_dir) == ("Anthropic/hh-rlhf", "cache")
        return [dialogue(f"{data_dir} {split}", " a", " b")]

    install_hub(monkeypatch, load_dataset)
    rows = load(["hh"], "train", data_dir=None, seed=0, cache_dir="cache").rows
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
