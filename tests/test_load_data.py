"""Data sets from files, the hub and code become rows, or one clear error."""

import gzip
import hashlib
import json
import re
import sys
import types
from pathlib import Path

import pytest

from fed.data.rows import Preference, usable
from load_data import DATASETS, dataset, load

HH = Path(__file__).parents[2] / "shared" / "data" / "hh"


def write(path, records):
    """Write records as JSON lines, gzipped if the name says so; a str is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    data = "".join(line + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
    return path


def dialogue(question, chosen, rejected):
    start = f"\n\nHuman: {question}\n\nAssistant:"
    return {"chosen": start + chosen, "rejected": start + rejected}


def pairs(num_rows, per_conversation=1):
    return [
        {"prompt": f"question {i // per_conversation}", "chosen": f"c{i}", "rejected": "r"} for i in range(num_rows)
    ]


def read(path, name="jsonl", seed=0):
    """Return the rows of both splits in one list."""
    loaded = [load([name], split, data_dir=str(path), seed=seed) for split in ("train", "test")]
    return [row for part in loaded for row in part.rows]


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
    assert Preference(" p\n\n", "\tc ", "r\u2028é", "g", "keep_end", "p") in rows
    assert {row.group for row in rows} == {"g", "mine"}


def test_blank_lines_carriage_returns_and_a_byte_order_mark_are_no_rows(tmp_path):
    line = json.dumps(pairs(1)[0])
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"\ufeff{line}\r\n\n  \n{line}".replace("question 0", "other", 1).encode())
    assert len(read(path)) == 2


def test_a_single_file_is_divided_90_to_10_whatever_its_name(tmp_path):
    path = write(tmp_path / "a-test.jsonl.gz", pairs(100))
    train, test = (load(["jsonl"], split, data_dir=str(path), seed=1).rows for split in ("train", "test"))
    assert (len(train), len(test)) == (90, 10)


def test_a_test_fraction_of_undivided_data_is_held_out(tmp_path):
    path = str(write(tmp_path / "own.jsonl", pairs(40)))
    sizes = [len(load(["jsonl"], split, data_dir=path, seed=0, test_fraction=0.25).rows) for split in ("train", "test")]
    assert sizes == [30, 10]


def test_files_named_test_are_the_test_split_and_all_others_train(tmp_path):
    write(tmp_path / "a-train.jsonl", pairs(5))
    write(tmp_path / "latest.jsonl", [{"prompt": "x", "chosen": "y", "rejected": "z"}])
    write(tmp_path / "a_TEST.jsonl.gz", [{"prompt": "t", "chosen": "y", "rejected": "z"}])
    train, test = (load(["jsonl"], split, data_dir=str(tmp_path), seed=0).rows for split in ("train", "test"))
    assert [row.prompt for row in test] == ["t"]
    assert sorted(row.prompt for row in train) == [*(f"question {i}" for i in range(5)), "x"]
    assert {row.group for row in train + test} == {"a", "latest"}


@pytest.mark.parametrize("name", ["a-train.jsonl", "a-test.jsonl", "a.jsonl"])
def test_a_folder_lacking_a_split_is_divided_by_conversation(tmp_path, name):
    write(tmp_path / name, pairs(100, per_conversation=5))
    train, test = (load(["jsonl"], split, data_dir=str(tmp_path), seed=0).rows for split in ("train", "test"))
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
    write(tmp_path / "jsonl" / "own.jsonl", pairs(5))
    loaded = [load(["hh", "jsonl", "demo"], split, data_dir=str(tmp_path), seed=0) for split in ("train", "test")]
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


# The hub, played by a module that needs no network


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
    with pytest.raises(ValueError, match=r"^cannot get Anthropic/hh-rlhf from the hub \(the cached file is damaged\)"):
        load(["hh"], "train", data_dir=None, seed=0)


def test_an_unreachable_hub_is_one_clear_error(monkeypatch):
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route\nsecond line")

    install_hub(monkeypatch, load_dataset)
    with pytest.raises(ValueError, match=r"^cannot get stanfordnlp/SHP from the hub \(no route\); give data_dir="):
        load(["shp"], "train", data_dir=None, seed=0)


# Errors


def test_an_unknown_data_set_names_the_known_and_the_nearest():
    with pytest.raises(ValueError, match=r"no data set 'jsnl'.*hh, hh_base, shp, se, jsonl, demo \(nearest: jsonl\)"):
        load(["jsnl"], "train", data_dir=None, seed=0)


@pytest.mark.parametrize(
    "names, split, message",
    [
        ([], "train", "expected a list of hh"),
        ("hh", "train", "expected a list of hh"),
        (["demo", "demo"], "train", "twice"),
        (["demo"], "valid", "expected train or test"),
        (["jsonl"], "train", "give data_dir="),
    ],
)
def test_a_wrong_call_says_what_was_expected(names, split, message):
    with pytest.raises(ValueError, match=message):
        load(names, split, data_dir=None, seed=0)


@pytest.mark.parametrize("data_dir", ["missing", "missing.jsonl", "a\0b", "n" * 5000])
def test_a_missing_folder_is_named(tmp_path, data_dir):
    with pytest.raises(ValueError, match="does not exist"):
        load(["jsonl"], "train", data_dir=str(tmp_path / data_dir), seed=0)


def test_a_folder_without_jsonl_is_named(tmp_path):
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.jsonl"):
        load(["jsonl"], "train", data_dir=str(tmp_path), seed=0)


def test_two_data_sets_do_not_share_one_folder(tmp_path):
    write(tmp_path / "a.jsonl", pairs(5))
    with pytest.raises(ValueError, match="has no folder 'hh'"):
        load(["hh", "jsonl"], "train", data_dir=str(tmp_path), seed=0)


GOOD = json.dumps({"prompt": "p", "chosen": "c", "rejected": "r"})


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"prompt": ' + "9" * 5000 + "}", "not JSON"),
        ("[1]", "the line is list, expected an object"),
        ("{}", "no field 'prompt'; the record has no field"),
        (json.dumps({"x" * 99: 1}), "no field 'prompt'; the record has '" + "x" * 39),
        ('{"prompt": "p", "chosen": "c"}', "no field 'rejected'; the record has 'prompt', 'chosen'"),
        ('{"prompt": 1, "chosen": "c", "rejected": "r"}', "'prompt' is int, expected a string"),
        ('{"prompt": "p", "chosen": null, "rejected": "r"}', "'chosen' is NoneType, expected a string"),
        ('{"prompt": "p", "chosen": "\\ud800", "rejected": "r"}', "whole characters"),
        ('{"prompt": "p", "chosen": "c", "rejected": "r", "group": 3}', "'group' is int"),
    ],
)
def test_a_bad_line_is_named_with_its_number(tmp_path, line, message):
    path = write(tmp_path / "a.jsonl", [GOOD, "", line])
    with pytest.raises(ValueError, match=re.escape(f"{path}:3: ") + ".*" + re.escape(message)) as raised:
        load(["jsonl"], "train", data_dir=str(path), seed=0)
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
        load(["jsonl"], "train", data_dir=str(tmp_path), seed=0)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-9], lambda data: b"x" + data, lambda data: data[:20] + b"\0" * 9]
)
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    path = write(tmp_path / "a.jsonl.gz", pairs(200))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz"):
        load(["jsonl"], "train", data_dir=str(tmp_path), seed=0)


def test_an_empty_split_says_what_was_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "", "rejected": "r"}])
    with pytest.raises(ValueError, match=r"the train split of jsonl has no rows \(skipped: 1 x empty response\)"):
        load(["jsonl"], "train", data_dir=str(path), seed=0)
    with pytest.raises(ValueError, match="the test split of jsonl has no rows"):
        load(["jsonl"], "test", data_dir=str(write(tmp_path / "b.jsonl", pairs(1))), seed=0)


# Seeds


def test_a_seed_decides_the_division_of_a_file(tmp_path):
    path = str(write(tmp_path / "a.jsonl", pairs(50)))
    prompts = [[row.prompt for row in load(["jsonl"], "test", data_dir=path, seed=s).rows] for s in (0, 0, 1)]
    assert prompts[0] == prompts[1] != prompts[2]


# The demo


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


DEMO_SHA256 = "4992084779dce696a46cfe776c08c0f068dc17b7998360aefb8c1e0f9b445a44"
