"""The demo's dialogues: the same on every machine, and not decided by length or by one word."""

import hashlib
import json
import re

import pytest

from load_data import load

DEMO_SHA256 = "4992084779dce696a46cfe776c08c0f068dc17b7998360aefb8c1e0f9b445a44"


@pytest.fixture(scope="module")
def demo():
    return [load(["demo"], split, data_dir=None, seed=0).rows for split in ("train", "test")]


def test_the_demo_has_1600_and_512_pairs_with_disjoint_prompts(demo):
    train, test = demo
    assert (len(train), len(test)) == (1600, 512)
    assert len({row.conversation for row in train + test}) == 2112
    assert {row.group for row in train} == {"computers", "cooking", "gardening", "health", "music", "travel"}


def test_the_demo_is_the_same_text_on_every_python(demo):
    text = json.dumps([[row.prompt, row.chosen, row.rejected] for rows in demo for row in rows])
    assert hashlib.sha256(text.encode()).hexdigest() == DEMO_SHA256
    assert load(["demo"], "test", data_dir=None, seed=1).rows != demo[1]


def test_the_longer_demo_answer_is_no_better(demo):
    rows = demo[0] + demo[1]
    assert 0.4 < sum(len(row.chosen) > len(row.rejected) for row in rows) / len(rows) < 0.6


def test_no_single_word_decides_the_demo(demo):
    """Choose the answer that has (or lacks) the word, and toss a coin on ties: this is right in < 60 %."""
    rows = demo[0] + demo[1]
    bags = [[set(re.findall(r"\w+|[.,]", text.lower())) for text in (row.chosen, row.rejected)] for row in rows]
    for word in set().union(*(bag for pair in bags for bag in pair)):
        lead = sum((word in chosen) - (word in rejected) for chosen, rejected in bags) / len(bags)
        assert 0.5 + abs(lead) / 2 < 0.6, word


def test_demo_texts_are_short(demo):
    rows = demo[0] + demo[1]
    assert all(35 < len(row.prompt) < 75 and row.prompt.endswith("\n\nAssistant:") for row in rows)
    assert all(15 < len(text) < 60 and text[0] == " " for row in rows for text in (row.chosen, row.rejected))
