"""`python -m scripts.evaluate`: a policy on any rows, against any reference."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from fed.model.demo import demo_tokenizer
from feedback.reward_bench import SECTIONS, section_scores
from scripts.evaluate import main
from support.command_line import SMALL, CommandLine, Result

KEYS = ("accuracy", "accuracy_low", "accuracy_high", "ties", "margin", "loss", "log_ratio", "logps_chosen", "examples")
TINY = (*SMALL, "max_length=112", "max_prompt_length=64", "batch_size=4", "lr=0.05")


@pytest.fixture
def evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Return a function that runs the command and returns its numbers and what it printed."""

    def call(*arguments: str) -> tuple[dict[str, Any], str]:
        out = tmp_path / "out.json"
        code = main([*arguments, f"out={out}", "device=cpu"])
        captured = capsys.readouterr()
        assert code == 0, captured.err
        return json.loads(out.read_text()), captured.out

    return call


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main([*arguments, "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def in_its_folder(result: Result, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(result.folder)
    return str(result.run)


@pytest.mark.parametrize("options", [(), ("lora.r=2",), ("loss=ipo", "loss.beta=0.3"), ("loss=sft",)])
def test_a_runs_own_test_pairs_have_the_metrics_that_the_run_wrote(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, evaluated, options: tuple[str, ...]
) -> None:
    result = command_line(*TINY, *options)
    found, _ = evaluated(in_its_folder(result, monkeypatch))
    expected = result.lines(split="test")[-1]
    assert {key: found["all"][key] for key in KEYS} == pytest.approx({key: expected[key] for key in KEYS}, abs=2e-5)
    before = result.lines(split="test")[0]
    assert expected["loss"] != before["loss"] and before["ties"] == 1


def test_clients_and_groups_are_scored_apart(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, evaluated
) -> None:
    result = command_line(*TINY, "client_eval_fraction=0.2")
    run = in_its_folder(result, monkeypatch)
    found, text = evaluated(run, "by=[client,group]")
    parts = json.loads((result.run / "partition.json").read_text())
    clients = found["by"]["client"]
    assert (
        sorted(clients) == ["0", "1"] and sum(one["examples"] for one in clients.values()) == found["all"]["examples"]
    )
    assert len(parts["clients"]) == 2 and "client 0" in text and "group music" in text
    total = found["all"]["examples"]
    for column in ("client", "group"):
        share = sum(one["accuracy"] * one["examples"] for one in found["by"][column].values()) / total
        assert share == pytest.approx(found["all"]["accuracy"])
    own, _ = evaluated(run, "by=[client]", "limit=3")
    assert own["all"]["examples"] == 3


def test_a_directory_without_a_reference_is_scored_by_its_log_probs(llama: Path, tmp_path: Path, evaluated) -> None:
    file = tmp_path / "pairs.jsonl"
    subsets = ("hep-cpp", "math-prm")
    rows = [{"prompt": f"q{n}?", "chosen": " a", "rejected": f" {n}", "subset": subsets[n % 2]} for n in range(6)]
    file.write_text("\n".join(map(json.dumps, rows)))
    found, text = evaluated(str(llama), str(file), "max_length=64")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), demo_tokenizer()

    @torch.no_grad()
    def logp(prompt: str, response: str) -> float:
        start, end = (tokenizer(text)["input_ids"] for text in (prompt, response + tokenizer.eos_token))
        every = model(torch.tensor([[*start, *end]])).logits[0].log_softmax(-1)
        return sum(float(every[len(start) + i - 1, token]) for i, token in enumerate(end))

    right = [logp(row["prompt"], row["chosen"]) > logp(row["prompt"], row["rejected"]) for row in rows]
    margins = [logp(row["prompt"], row["chosen"]) - logp(row["prompt"], row["rejected"]) for row in rows]
    assert found["all"]["accuracy"] == sum(right) / 6
    assert found["all"]["margin"] == pytest.approx(sum(margins) / 6, abs=1e-4)
    assert "is scored by its log-probs alone; reference= names it" in text and found["reference"] is None
    assert "loss" not in found["all"] and "log_ratio" not in found["all"]
    assert set(found["by"]) == {"subset"} and set(found["reward_bench"]) == {"Reasoning", "score"}
    accuracies = {name: one["accuracy"] for name, one in found["by"]["subset"].items()}
    expected = (3 * accuracies["hep-cpp"] + 984 * accuracies["math-prm"]) / 987
    assert found["reward_bench"]["Reasoning"] == pytest.approx(expected) and "RewardBench  Reasoning" in text
    same, _ = evaluated(str(llama), str(file), "max_length=64", f"reference={llama}", "beta=0.5")
    assert same["all"]["ties"] == 1 and same["all"]["loss"] == pytest.approx(0.693147, abs=1e-6)


def test_what_was_forgotten_is_the_difference_of_losses(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, evaluated
) -> None:
    run = in_its_folder(command_line(*TINY), monkeypatch)
    text = tmp_path / "text.txt"
    text.write_text("One paragraph.\n\nAnother, longer one.\n\n\n\nA third.")
    found, told = evaluated(run, f"text={text}", "limit=4")
    assert found["text"]["documents"] == 3 and "of 3 documents" in told

    @torch.no_grad()
    def loss(folder: str) -> float:
        model = AutoModelForCausalLM.from_pretrained(folder)
        total = count = 0.0
        for part in ("One paragraph.", "Another, longer one.", "A third."):
            ids = torch.tensor([demo_tokenizer()(part)["input_ids"]])
            total += float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
            count += ids.shape[1] - 1
        return total / count

    assert found["text"]["loss_per_token"] == pytest.approx(loss(f"{run}/policy"), abs=1e-4)
    difference = found["text"]["loss_per_token"] - found["text"]["reference_loss_per_token"]
    assert found["text"]["difference"] == pytest.approx(difference, abs=1e-9)
    assert found["text"]["difference_low"] < difference < found["text"]["difference_high"]


def test_reward_benchs_sections_are_weighted_as_its_own_code_does() -> None:
    accuracies = {name: {"accuracy": 1.0, "examples": 100} for names in SECTIONS.values() for name in names}
    assert section_scores(accuracies) == {**dict.fromkeys(SECTIONS, 1.0), "score": 1.0}
    accuracies["xstest-should-refuse"] = {"accuracy": 0.0, "examples": 154}
    assert section_scores(accuracies)["Safety"] == pytest.approx((100 + 100 + 154 + 100) / (250 + 154 + 300))
    assert section_scores({"other": {"accuracy": 1.0, "examples": 3}}) == {}


def test_mistakes_are_told_in_one_line(
    command_line: CommandLine,
    monkeypatch: pytest.MonkeyPatch,
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = in_its_folder(command_line(*TINY), monkeypatch)
    capsys.readouterr()
    assert "POLICY is missing" in refused(capsys)
    assert "nothing says what to read" in refused(capsys, str(llama))
    assert "by=nobody names no column of the rows; they have group" in refused(capsys, run, "by=nobody")
    assert "by=[client] is for the run's own pairs" in refused(capsys, run, "x.jsonl", "by=client")
    assert "there is no file x.jsonl" in refused(capsys, run, "x.jsonl")
    assert "both name rows" in refused(capsys, run, "x.jsonl", "datasets=[hh]")
    assert "unknown option referense=none" in refused(capsys, run, "referense=none")
    assert "nowhere" in refused(capsys, run, "reference=./nowhere")
    assert f"text={tmp_path / 'no.txt'} is no file" in refused(capsys, run, f"text={tmp_path / 'no.txt'}")
    assert "split=tset is unknown" in refused(capsys, run, "split=tset")
    assert "no row is left" in refused(capsys, run, "split=train", "max_length=2", "max_prompt_length=1")
