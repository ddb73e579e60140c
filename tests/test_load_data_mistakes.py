"""Mistakes in data files and in the names of data sets are told with the file, the line and the way out."""

import json
import re

import pytest

from load_data import load
from support.rows import pairs, write


def test_an_unknown_data_set_names_the_known_and_the_nearest():
    with pytest.raises(
        ValueError, match=r"no data set 'fles'.*hh, hh_base, .* \(nearest: files\), and a name such as owner/name"
    ):
        load(["fles"], "train", data_dir=None, seed=0)


@pytest.mark.parametrize(
    "names, split, message",
    [
        ([], "train", "expected a list of hh"),
        ("hh", "train", "expected a list of hh"),
        (["demo", "demo"], "train", "twice"),
        (["demo"], "valid", "expected train, validation or test"),
        (["files"], "train", "give data_dir="),
    ],
)
def test_a_wrong_call_says_what_was_expected(names, split, message):
    with pytest.raises(ValueError, match=message):
        load(names, split, data_dir=None, seed=0)


@pytest.mark.parametrize("data_dir", ["missing", "missing.jsonl", "a\0b", "n" * 5000])
def test_a_missing_folder_is_named(tmp_path, data_dir):
    with pytest.raises(ValueError, match="does not exist"):
        load(["files"], "train", data_dir=str(tmp_path / data_dir), seed=0)


def test_a_folder_without_jsonl_is_named(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"holds no file of \*\.jsonl"):
        load(["files"], "train", data_dir=str(tmp_path), seed=0)


def test_two_data_sets_do_not_share_one_folder(tmp_path):
    write(tmp_path / "a.jsonl", pairs(5))
    with pytest.raises(ValueError, match="has no folder 'hh'"):
        load(["hh", "files"], "train", data_dir=str(tmp_path), seed=0)


GOOD = json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"})


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"prompt": ' + "9" * 5000 + "}", "not JSON"),
        ("[1]", "the line is list, expected an object"),
        ("{}", "the record has no field, which is no known form of preferences"),
        (json.dumps({"x" * 99: 1}), "the record has '" + "x" * 39),
        ('{"prompt": "p", "chosen": "c"}', "the record has 'prompt', 'chosen', which is no known form"),
        ('{"prompt": 1, "chosen": "c", "rejected": "r"}', "'prompt' is int, expected a string"),
        ('{"prompt": "p", "chosen": "\\ud800", "rejected": "r"}', "whole characters"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", [GOOD, "", line])
    with pytest.raises(ValueError, match=re.escape(f"{path}:3: ") + ".*" + re.escape(message)) as raised:
        load(["files"], "train", data_dir=str(path), seed=0)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "record, message",
    [
        ({"question": "q", "answers": "a"}, "'answers' is str, expected a list of objects"),
        ({"question": "q", "answers": [1]}, "expected a list of objects"),
        ({"question": "q", "answers": [{"text": "t", "pm_score": "1"}]}, "'pm_score' is str, expected a number"),
        ({"question": "q", "answers": [{"text": "t", "pm_score": True}]}, "'pm_score' is bool"),
    ],
)
def test_a_bad_stack_exchange_record_is_named(tmp_path, record, message):
    with pytest.raises(ValueError, match=r"se\.jsonl:1: .*" + re.escape(message)):
        load(["se"], "train", data_dir=str(write(tmp_path / "se.jsonl", [record])), seed=0)


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD.encode() + b'\n{"prompt": "\xff"}')
    with pytest.raises(ValueError, match=r"a\.jsonl:2: byte 12 is not UTF-8"):
        load(["files"], "train", data_dir=str(tmp_path), seed=0)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"x" + data, lambda data: data[:20] + b"\0" * 9]
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    path = write(tmp_path / "a.jsonl.gz", pairs(200))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz"):
        load(["files"], "train", data_dir=str(tmp_path), seed=0)


def test_an_empty_split_says_what_was_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "", "rejected": "r"}])
    with pytest.raises(ValueError, match=r"the train split of files has no rows \(skipped: 1 x empty response\)"):
        load(["files"], "train", data_dir=str(path), seed=0)


@pytest.mark.parametrize(
    "records, test_fraction, split, message",
    [
        (
            pairs(1),
            None,
            "test",
            r"b\.jsonl has 1 pair in 1 conversation; 0\.1 of the conversations is tested on: give",
        ),
        (
            pairs(1) * 3,
            None,
            "test",
            r"b\.jsonl has 3 pairs in 1 conversation;.*unless a field conversation or holdout_by=COLUMN tells them",
        ),
        (
            pairs(1),
            0.9,
            "train",
            r"b\.jsonl has 1 pair in 1 conversation; 0\.9 of the conversations is tested on: give",
        ),
    ],
)
def test_a_file_of_one_conversation_says_so(tmp_path, records, test_fraction, split, message):
    with pytest.raises(ValueError, match=message):
        load(
            ["files"],
            split,
            data_dir=str(write(tmp_path / "b.jsonl", records)),
            seed=0,
            test_fraction=test_fraction,
        )
