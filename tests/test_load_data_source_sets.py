"""The data sets of the code bases that this project follows, each from a few records written here."""

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from fed.data import best_of
from fed.data.rows import Chat, Turn
from fed.data.source import Reading
from load_data import load, load_file
from support.records import ANSWER, SUPERVISED, USER, answer, chat, message, shared


def read(tmp_path, name, *records, file="a.jsonl", reading=Reading()):  # noqa: B008  # frozen
    path = tmp_path / file
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return load_file(str(path), name, reading)


LABELS = ("sentiment", "descriptiveness", "tldr", "tldr60k", "cnndm", "cnndm60k")


@pytest.mark.parametrize("name", LABELS)
def test_four_labels_of_the_best_of_four_are_twelve_pairs(tmp_path, name):
    records = [{"query": f"q{n}", **{f"sample{k}": f" s{n}{k}" for k in range(4)}, "best": n} for n in range(4)]
    rows = read(tmp_path, name, *records).rows
    assert len(rows) == 12 and {row.group for row in rows} == {name}
    assert {(row.prompt, row.chosen, row.rejected) for row in rows} == {
        (f"q{n}", f" s{n}{n}", f" s{n}{k}") for n in range(4) for k in range(4) if k != n
    }
    with pytest.raises(ValueError, match=r"a\.jsonl:1: 'best' is 4, expected 0 to 3"):
        read(tmp_path, name, {**records[0], "best": 4})


def test_labels_of_token_ids_become_gpt2_s_text(tmp_path):
    tokens = {f"w{n}": n for n in range(50257)}
    gpt2 = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(tokens, "w0")), eos_token="w50256")
    gpt2.save_pretrained(tmp_path / "gpt2")
    record = {
        "query": [5, 6, 50259, 50259],
        **{f"sample{k}": [k, 50259] for k in range(1, 4)},
        "sample0": [9],
        "best": 0,
    }
    best_of._gpt2.cache_clear()
    rows = read(tmp_path, "tldr60k", record, reading=Reading(tokenizer=str(tmp_path / "gpt2"))).rows
    assert [(row.prompt, row.chosen, row.rejected) for row in rows] == [("w5 w6", "w9", f"w{k}") for k in range(1, 4)]
    small = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, "a")), eos_token="a")
    small.save_pretrained(tmp_path / "other")
    with pytest.raises(
        ValueError, match=r"token ids of GPT-2, but the tokenizer of .*other has 1 tokens; use model=gpt2"
    ):
        read(tmp_path, "tldr60k", record, reading=Reading(tokenizer=str(tmp_path / "other")))
    with pytest.raises(ValueError, match="token ids of GPT-2, whose tokenizer cannot be loaded"):
        read(tmp_path, "tldr60k", record, reading=Reading(tokenizer=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="'query' is list, expected text, or a list of GPT-2's token ids"):
        read(tmp_path, "tldr60k", {**record, "query": [60000]})


def test_sharegpt_gives_every_answer_of_talks_that_a_person_begins(tmp_path):
    talk = [shared("human", "a"), shared("gpt", "b"), shared("human", "c"), shared("gpt", "d")]
    records = [{"id": "1", "conversations": talk}, {"conversations": talk[1:]}, {"conversations": []}]
    found = read(tmp_path, "sharegpt", *records, reading=SUPERVISED)
    assert [(len(row.prompt.turns), row.chosen.content, row.rejected) for row in found.rows] == [
        (1, "b", None),
        (3, "d", None),
    ]
    assert found.skipped == {"begins with an answer": 1, "empty conversation": 1}
    with pytest.raises(ValueError, match="holds single responses, but loss=dpo learns from pairs of responses; use"):
        read(tmp_path, "sharegpt", *records)


@pytest.mark.parametrize(("name", "model"), [("shareclaude", "claude"), ("sharegpt4", "gpt4")])
def test_completions_are_read_from_the_files_of_their_model(tmp_path, name, model):
    for other in ("claude", "gpt4"):
        content = {f"{other} {n}?": [f"yes {n}"] for n in range(300)}
        (tmp_path / f"0_{other}_completions.json").write_text(json.dumps(content))
    found = {
        split: load([name], split, data_dir=str(tmp_path), seed=0, reading=SUPERVISED).rows
        for split in ("train", "test")
    }
    assert {split: len(rows) for split, rows in found.items()} == {"train": 297, "test": 3}
    assert all(row.prompt.turns[0].content.startswith(model) for rows in found.values() for row in rows)
    assert not {row.conversation for row in found["train"]} & {row.conversation for row in found["test"]}


def test_aiprefs_are_conversations_and_ties_are_counted(tmp_path):
    usual = {"instruction": "Hi", "output_1": "a", "output_2": "b", "annotator": "gpt4"}
    records = [{**usual, "preference": value} for value in (1, 2, 1.5, None, float("nan"))]
    found = read(tmp_path, "aiprefs", *records)
    asked = chat((USER, "Hi"))
    assert [(row.prompt, row.chosen, row.rejected) for row in found.rows] == [
        (asked, answer("a"), answer("b")),
        (asked, answer("b"), answer("a")),
    ]
    assert found.skipped == {"a tie": 1, "no judgement": 2}


@pytest.mark.parametrize("name", ["ultrafeedback", "ultrafeedback_narrow"])
def test_ultrafeedback_is_read_with_its_prompt_cut_off(tmp_path, name):
    start = "Human: Hi\n\nAssistant: "
    found = read(
        tmp_path,
        name,
        {"prompt": "Hi", "chosen": start + "yes", "rejected": start + "no"},
        {"prompt": "Hi", "chosen": "yes", "rejected": start + "no"},
    )
    (row,) = found.rows
    assert (row.prompt, row.chosen, row.rejected) == (chat((USER, "Hi")), answer("yes"), answer("no"))
    assert found.skipped == {"does not begin with its prompt": 1}


def test_ultrachat_gives_the_first_answer(tmp_path):
    talk = [message(USER, "a"), message(ANSWER, "b"), message(USER, "c"), message(ANSWER, "d")]
    found = read(
        tmp_path, "ultrachat", {"messages": talk}, {"messages": talk[:1]}, {"messages": talk[1:]}, reading=SUPERVISED
    )
    assert [(row.prompt, row.chosen) for row in found.rows] == [(chat((USER, "a")), answer("b"))]
    assert found.skipped == {"does not begin with a question and its answer": 2}


def test_wiki_continues_the_first_ten_words_of_long_paragraphs(tmp_path):
    long = " ".join(f"word{n}" for n in range(30))
    for split in ("train", "test"):
        records = [{"text": f"{split} {n} {long}"} for n in range(200)] + [{"text": "short"}]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = {s: load(["wiki"], s, data_dir=str(tmp_path), seed=0, reading=SUPERVISED).rows for s in ("train", "test")}
    assert {split: len(rows) for split, rows in found.items()} == {"train": 10, "test": 128}
    assert found["train"][0].prompt == "train 0 word0 word1 word2 word3 word4 word5 word6 word7 "
    assert found["train"][0].prompt + found["train"][0].chosen == f"train 0 {long}"


def test_alpaca_eval_has_its_reference_answers(tmp_path):
    (row,) = read(
        tmp_path, "alpaca_eval", {"instruction": "Hi", "output": "yes", "generator": "m"}, reading=SUPERVISED
    ).rows
    assert (row.prompt, row.chosen, row.extra.get("generator")) == (chat((USER, "Hi")), answer("yes"), "m")


def test_leetcode_labels_are_pairs_of_conversations(tmp_path):
    record = {"id": 1, "difficulty": "Easy", "title": "Sum", "description": "Add.", "version1": "x", "version2": "y"}
    found = read(tmp_path, "lc", *({**record, "preference": value} for value in (0, 1, None)))
    assert [(row.chosen, row.rejected) for row in found.rows] == [
        (answer("x"), answer("y")),
        (answer("y"), answer("x")),
    ]
    row = found.rows[0]
    assert row.prompt == Chat((Turn(USER, "Add."),)) and row.group == "Easy" and found.skipped == {"no judgement": 1}
    with pytest.raises(ValueError, match="'preference' is 2, expected 0 or 1"):
        read(tmp_path, "lc", {**record, "preference": 2})
