"""Data sets from files, the hub and code become rows, or one clear error."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from fed.data.rows import Extra, Preference, SplitName, first_human_turn, usable
from load_data import DATASETS, dataset, load
from support.rows import dialogue, pairs, read, write

HH = Path(__file__).parents[2] / "shared" / "data" / "hh"


def hh_row(tmp_path, record):
    """Return the single row of a test split that holds `record`, or why it was skipped."""
    write(tmp_path / "base-train.jsonl", [dialogue("other?", " a", " b")])
    write(tmp_path / "base-test.jsonl", [record, dialogue("q?", " a", " b")])
    loaded = load(["hh"], "test", data_dir=str(tmp_path), seed=0)
    return list(loaded.skipped.items()) if loaded.skipped else loaded.rows[0]


# Anthropic HH


def test_hh_prompt_ends_at_the_last_common_assistant_turn(tmp_path):
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: why?\n\nAssistant:"
    row = hh_row(tmp_path, {"chosen": start + " because", "rejected": start + " be quiet"})
    assert (row.prompt, row.chosen, row.rejected) == (start, " because", " be quiet")
    assert (row.group, row.truncation, row.conversation) == ("base", "keep_end", "hi")


def test_hh_dialogues_that_part_before_their_last_turn_are_skipped_and_counted(tmp_path):
    """The original cuts `rejected` at the length of chosen's prompt: here in the middle of another turn."""
    start = "\n\nHuman: hi\n\nAssistant:"
    record = {"chosen": start + " a\n\nHuman: more\n\nAssistant: b", "rejected": start + " c"}
    assert hh_row(tmp_path, record) == [("response holds a further turn", 1)]


@pytest.mark.parametrize(
    "chosen, rejected, reason",
    [
        (" \n", " b", "empty response"),
        (" a", "", "empty response"),
        ("\n\nHuman: x", "", "response holds a further turn"),
        (" a", " a", "chosen equals rejected"),
    ],
)
def test_hh_useless_responses_are_skipped_and_counted(tmp_path, chosen, rejected, reason):
    assert hh_row(tmp_path, dialogue("x?", chosen, rejected)) == [(reason, 1)]


def test_hh_dialogues_without_a_common_assistant_turn_are_skipped_and_counted(tmp_path):
    record = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    assert hh_row(tmp_path, record) == [("no assistant turn in common", 1)]


@pytest.mark.skipif(not HH.is_dir(), reason="../shared/data/hh is not on this machine")
def test_real_hh_keeps_2303_harmless_and_2339_helpful_rows():
    loaded = [load(["hh"], split, data_dir=str(HH), seed=0) for split in ("train", "test")]
    groups = [row.group for part in loaded for row in part.rows]
    assert (groups.count("harmless-base"), groups.count("helpful-base"), len(groups)) == (2303, 2339, 4642)
    assert loaded[0].skipped == {"response holds a further turn": 14, "empty response": 8}
    assert loaded[1].skipped == {}
    assert 0.08 < len(loaded[1].rows) / 4642 < 0.12
    assert not {row.conversation for row in loaded[0].rows} & {row.conversation for row in loaded[1].rows}


def test_hh_base_leaves_out_the_files_of_other_parts(tmp_path):
    for part in ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled", "other"):
        for split in ("train", "test"):
            write(tmp_path / f"{part}-{split}.jsonl.gz", [dialogue(f"{part} {split}?", " a", " b")])
    train, test = (load(["hh_base"], split, data_dir=str(tmp_path), seed=0).rows for split in ("train", "test"))
    assert [row.conversation for row in train] == ["harmless-base train?", "helpful-base train?"]
    assert [(row.group, row.conversation) for row in test] == [
        ("harmless-base", "harmless-base test?"),
        ("helpful-base", "helpful-base test?"),
    ]


def test_files_that_hh_base_leaves_out_do_not_divide_the_others(tmp_path):
    """A test split that helpful-online alone has does not count."""
    write(tmp_path / "harmless-base-train.jsonl", [dialogue(f"q{i}?", " a", " b") for i in range(10)])
    write(tmp_path / "helpful-online-test.jsonl", [dialogue("x?", " a", " b")])
    sizes = {
        name: [len(load([name], split, data_dir=str(tmp_path), seed=0).rows) for split in ("train", "test")]
        for name in ("hh", "hh_base")
    }
    assert sizes == {"hh": [10, 1], "hh_base": [9, 1]}
    assert {row.group for row in read(tmp_path, "hh_base")} == {"harmless-base"}


def test_hh_base_finds_its_parts_as_anthropic_lays_them_out(tmp_path):
    for part in ("helpful-base", "helpful-online"):
        for split in ("train", "test"):
            write(tmp_path / part / f"{split}.jsonl.gz", [dialogue(f"{part} {split}", " a", " b")])
    assert [row.conversation for row in read(tmp_path, "hh_base")] == ["helpful-base train", "helpful-base test"]


@pytest.mark.parametrize("path", ["", "helpful-online-train.jsonl"])
def test_a_place_without_a_part_of_hh_base_is_named(tmp_path, path):
    write(tmp_path / "helpful-online-train.jsonl", [dialogue("q?", " a", " b")])
    message = rf"data_dir={re.escape(str(tmp_path / path))} holds no file of harmless-base or helpful-base, .*'hh_base'"
    with pytest.raises(ValueError, match=message):
        load(["hh_base"], "train", data_dir=str(tmp_path / path), seed=0)


@pytest.mark.skipif(not HH.is_dir(), reason="../shared/data/hh is not on this machine")
def test_hh_base_of_the_real_files_is_hh_for_they_are_its_parts():
    for split in ("train", "test"):
        hh, base = (load([name], split, data_dir=str(HH), seed=0) for name in ("hh", "hh_base"))
        assert hh == base and hh.rows


# SHP


def test_shp_prefers_a_when_labels_is_1_and_drops_ratios_below_2(tmp_path):
    record = {"history": "h", "human_ref_A": "A", "human_ref_B": "B", "labels": 1, "score_ratio": 2.0, "domain": "d"}
    records = [record | {"history": f"h{i}"} for i in range(20)]
    records[1] |= {"labels": 0, "domain": "askbaking_train"}
    records[2] |= {"score_ratio": 1.9}
    rows = {row.conversation: row for row in read(write(tmp_path / "shp.jsonl", records), "shp")}
    assert load(["shp"], "train", data_dir=str(tmp_path), seed=0).skipped == {"score_ratio below 2": 1}
    assert rows["h0"] == Preference("\n\nHuman: h0\n\nAssistant:", " A", " B", "d", "keep_start", "h0")
    assert (rows["h1"].chosen, rows["h1"].rejected, rows["h1"].group) == (" B", " A", "askbaking")
    assert len(rows) == 19


# Stack Exchange


def test_se_makes_all_pairs_and_prefers_the_later_of_equal_scores(tmp_path):
    answers = [{"text": f"<p>{text}</p>", "pm_score": score} for text, score in (("a", 1), ("b", 5), ("c", 5))]
    rows = read(write(tmp_path / "se.jsonl", [{"question": f"<p>q{i}</p>", "answers": answers} for i in (1, 2)]), "se")
    found = [(row.chosen, row.rejected) for row in rows if row.conversation == "q1"]
    assert found == [(" b", " a"), (" c", " a"), (" c", " b")]
    assert {(row.group, row.truncation) for row in rows} == {("stack-exchange", "keep_start")}


def test_se_tests_on_one_percent_of_the_questions(tmp_path):
    answers = [{"text": "a", "pm_score": 1}, {"text": "b", "pm_score": 2}]
    path = write(tmp_path / "se.jsonl", [{"question": f"q{i}", "answers": answers} for i in range(200)])
    assert len(load(["se"], "test", data_dir=str(path), seed=0).rows) == 2


def test_a_question_html_cannot_parse_is_skipped_and_counted(tmp_path):
    answers = [{"text": "a", "pm_score": 1}, {"text": "b", "pm_score": 2}]
    questions = ["<p>1", "<p>2", f"&#{'9' * 5000};"]
    path = write(tmp_path / "se.jsonl", [{"question": question, "answers": answers} for question in questions])
    assert load(["se"], "train", data_dir=str(path), seed=0).skipped == {"malformed html": 1}


def test_a_question_with_thousands_of_answers_is_skipped_and_counted(tmp_path):
    answers = [{"text": f"a{i}", "pm_score": i} for i in range(1001)]
    path = write(
        tmp_path / "se.jsonl", [{"question": f"q{i}", "answers": answers[: 1001 - 999 * i]} for i in (0, 1, 1)]
    )
    loaded = load(["se"], "train", data_dir=str(path), seed=0)
    assert (len(loaded.rows), loaded.skipped) == (2, {"more than 1000 answers": 1})


# The user's own rows


def test_own_rows_are_used_exactly_as_written(tmp_path):
    record = {"prompt": " p\n\n", "chosen": "\tc ", "rejected": "r\u2028é", "group": "g", "extra": 1}
    rows = read(write(tmp_path / "mine.jsonl", [record, *pairs(3)]))
    assert Preference(" p\n\n", "\tc ", "r\u2028é", "g", "keep_end", "p", Extra(("extra",), ("1",))) in rows
    assert {row.group for row in rows} == {"g", "mine"}


def test_blank_lines_carriage_returns_and_a_byte_order_mark_are_no_rows(tmp_path):
    line = json.dumps(pairs(1)[0])
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"\ufeff{line}\r\n\n  \n{line}".replace("question 0", "other", 1).encode())
    assert len(read(path)) == 2


def test_a_single_file_is_divided_90_to_10_whatever_its_name(tmp_path):
    path = write(tmp_path / "a-test.jsonl.gz", pairs(100))
    train, test = (load(["files"], split, data_dir=str(path), seed=1).rows for split in ("train", "test"))
    assert (len(train), len(test)) == (90, 10)


def test_a_test_fraction_of_undivided_data_is_held_out(tmp_path):
    path = str(write(tmp_path / "own.jsonl", pairs(40)))
    sizes = [len(load(["files"], split, data_dir=path, seed=0, test_fraction=0.25).rows) for split in ("train", "test")]
    assert sizes == [30, 10]


def test_files_named_test_are_the_test_split_and_all_others_train(tmp_path):
    write(tmp_path / "a-train.jsonl", pairs(5))
    write(tmp_path / "latest.jsonl", [{"prompt": "x", "chosen": "y", "rejected": "z"}])
    write(tmp_path / "a_TEST.jsonl.gz", [{"prompt": "t", "chosen": "y", "rejected": "z"}])
    train, test = (load(["files"], split, data_dir=str(tmp_path), seed=0).rows for split in ("train", "test"))
    assert [row.prompt for row in test] == ["t"]
    assert sorted(row.prompt for row in train) == [*(f"question {i}" for i in range(5)), "x"]
    assert {row.group for row in train + test} == {"a", "latest"}


@pytest.mark.parametrize("word", ["validation", "valid", "val", "dev", "eval"])
@pytest.mark.parametrize("test", [True, False])
def test_validation_files_are_neither_trained_nor_tested_on(tmp_path, word, test):
    write(tmp_path / "train.jsonl", pairs(40))
    write(tmp_path / f"{word}.jsonl", [{"prompt": "v", "chosen": "y", "rejected": "z"}])
    if test:
        write(tmp_path / "test.jsonl", [{"prompt": "t", "chosen": "y", "rejected": "z"}])
    found = {split: load(["files"], split, data_dir=str(tmp_path), seed=0).rows for split in get_args(SplitName)}
    assert [row.prompt for row in found["validation"]] == ["v"]
    assert "v" not in {row.prompt for row in found["train"] + found["test"]}
    assert len(found["train"] + found["test"]) == 40 + test


def test_validation_files_alone_are_divided_and_a_file_in_code_has_none(tmp_path):
    path = write(tmp_path / "eval.jsonl", pairs(10))
    sizes = [len(load(["files"], split, data_dir=str(path), seed=0).rows) for split in get_args(SplitName)]
    assert sizes == [9, 0, 1]
    assert load(["demo"], "validation", data_dir=None, seed=0).rows == []


def test_a_number_is_a_group_and_null_is_none(tmp_path):
    extra = [{"group": 3}, {"group": 2.5}, {"group": None}, {"conversation": 7}]
    rows = read(write(tmp_path / "mine.jsonl", [{**pair, **more} for pair, more in zip(pairs(4), extra, strict=True)]))
    assert sorted(row.group for row in rows) == ["2.5", "3", "mine", "mine"]
    assert "7" in {row.conversation for row in rows}


def test_whole_numbers_are_the_same_conversation_however_they_are_written(tmp_path):
    """Pandas writes 1.0 for 1 if the column lacks a number, and NaN where it does."""
    write(tmp_path / "train.jsonl", [{**pair, "conversation": 1, "group": 2} for pair in pairs(1)])
    lacking = {**pairs(2)[1], "conversation": float("nan"), "group": float("nan")}
    write(tmp_path / "test.jsonl", [{**pairs(1)[0], "conversation": 1.0, "group": 2.0}, lacking])
    (train,) = load(["files"], "train", data_dir=str(tmp_path), seed=0).rows
    test, without = load(["files"], "test", data_dir=str(tmp_path), seed=0).rows
    assert (train.conversation, train.group) == (test.conversation, test.group) == ("1", "2")
    assert without.conversation == first_human_turn(without.prompt) and without.group != "nan"


def test_an_empty_prompt_is_skipped_and_counted_and_other_columns_are_kept_or_told(tmp_path):
    more = {"score": 1.0, "good": True, "none": None, "text": "x" * 201, "list": [1]}
    empty = {"prompt": "", "chosen": "c", "rejected": "r"}
    path = write(tmp_path / "mine.jsonl", [*({**pair, **more} for pair in pairs(3)), empty])
    found = load(["files"], "train", data_dir=str(path), seed=0)
    assert found.skipped == {"empty prompt": 1} and found.unread == ("list", "text")
    assert found.rows[0].extra == (("score", "good"), ("1", "true"))


@pytest.mark.parametrize("name", ["a-train.jsonl", "a-test.jsonl", "a.jsonl"])
def test_a_folder_lacking_a_split_is_divided_by_conversation(tmp_path, name):
    write(tmp_path / name, pairs(100, per_conversation=5))
    train, test = (load(["files"], split, data_dir=str(tmp_path), seed=0).rows for split in ("train", "test"))
    assert (len(train), len(test)) == (90, 10)
    assert not {row.conversation for row in train} & {row.conversation for row in test}


def test_files_one_folder_down_are_found_as_anthropic_lays_them_out(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / "helpful-base" / f"{split}.jsonl.gz", [dialogue(split, " a", " b")])
    write(tmp_path / "red-team-attempts" / "red_team_attempts.jsonl.gz", ["not read"])
    assert [(row.group, row.conversation) for row in read(tmp_path, "hh")] == [
        ("helpful-base", "train"),
        ("helpful-base", "test"),
    ]


def test_several_data_sets_are_merged_each_from_its_folder(tmp_path):
    write(tmp_path / "hh" / "base.jsonl", [dialogue(f"q{i}", " a", " b") for i in range(5)])
    write(tmp_path / "files" / "own.jsonl", pairs(5))
    loaded = [load(["hh", "files", "demo"], split, data_dir=str(tmp_path), seed=0) for split in ("train", "test")]
    assert sum(len(part.rows) for part in loaded) == 5 + 5 + 1600 + 512
    assert len(load(["hh"], "train", data_dir=str(tmp_path), seed=0).rows) == 4


def test_a_data_set_is_added_by_one_function(tmp_path, monkeypatch):
    """The function is written as load_data.py tells at its top."""
    monkeypatch.setattr("fed.data.loader.DATASETS", DATASETS.copy())

    @dataset("mine", test_share=0.5)
    def mine(source):
        for record in source.records("someone/mine"):
            yield usable(Preference(record.text("question"), record.text("best"), record.text("worst")))

    records = [{"question": f"q{i}", "best": "b" * i, "worst": "w"} for i in range(5)]
    path = str(write(tmp_path / "mine.jsonl", records))
    train, test = (load(["mine"], split, data_dir=path, seed=0) for split in ("train", "test"))
    assert (len(train.rows), len(test.rows), train.skipped) == (2, 2, {"empty response": 1})
    assert {row.prompt for row in train.rows + test.rows} == {"q1", "q2", "q3", "q4"}
    assert "mine" not in DATASETS


def test_a_seed_decides_the_division_of_a_file(tmp_path):
    path = str(write(tmp_path / "a.jsonl", pairs(50)))
    prompts = [[row.prompt for row in load(["files"], "test", data_dir=path, seed=s).rows] for s in (0, 0, 1)]
    assert prompts[0] == prompts[1] != prompts[2]
