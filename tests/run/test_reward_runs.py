"""Reward models: trained by a federation, read by transformers, scoring files and judging."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from fed.config.schema import Config
from losses.logps import Logps
from losses.reward import reward
from model.conftest import gpt2
from run.data_checks import check_reward
from scripts import chat, evaluate, judge, reward_model
from support.command_line import CommandLine, Result
from support.separate_runs import launch, only_run

__all__ = ["gpt2"]
REWARD = ("loss=reward", "lr=0.003", "warmup_steps=0", "batch_size=8", "num_threads=1", "client_num_in_total=2")
FEW = ("n_train_examples=60", "n_test_examples=16", "comm_round=1")


def test_the_loss_equals_numbers_worked_by_hand() -> None:
    scores = Logps(*torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 0.5]], dtype=torch.float64))
    expected = torch.tensor([0.31326168751822286, 3.0485873515737421, 0.69314718055994531], dtype=torch.float64)
    torch.testing.assert_close(reward(scores, None), expected, rtol=1e-14, atol=0)
    with pytest.raises(ValueError, match="a reward model learns from pairs"):
        reward(Logps(torch.zeros(2)), None)


def separable(folder: Path) -> str:
    """Write pairs whose better response is the one that thanks, and return their file."""
    words = ("tea", "rain", "bread", "music", "snow", "chess", "maps", "boats")
    pairs = [
        {
            "prompt": f"\n\nHuman: {word} or {other}?\n\nAssistant:",
            "chosen": f" Thanks! I like {word}.",
            "rejected": f" No. I like {word}.",
        }
        for word in words
        for other in words
        if word != other
    ]
    file = folder / "separable.jsonl"
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return str(file)


def test_separable_pairs_are_told_apart(command_line: CommandLine, tmp_path: Path) -> None:
    own = ("datasets=[files]", f"data_dir={separable(tmp_path)}", "n_test_examples=16")
    result = command_line(*REWARD, *own, "comm_round=4", "local_epochs=3")
    assert result.code == 0, result.err
    first, last = result.lines(split="test")[0], result.lines(split="test")[-1]
    assert last["accuracy"] > 0.9 and last["loss"] < 0.4 < first["loss"]
    assert "log_ratio" not in last and "logps_chosen" not in last
    assert "reading reference" not in result.out


def texts_of(folder: Path, scored: list[dict[str, Any]], **how: Any) -> list[tuple[float, float]]:
    """Return our score of each response, and that of transformers' own model."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, **how).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for line in scored:
        for side in ("chosen", "rejected"):
            ids = [*tokenizer(line["prompt"] + line[side])["input_ids"], tokenizer.eos_token_id]
            with torch.no_grad():
                found.append((line[f"score_{side}"], float(model(torch.tensor([ids])).logits[0, 0])))
    return found


@pytest.mark.parametrize("options", [(), ("packing=false",), ("prefix_sharing=false",), ("lora.r=4",)])
def test_scores_are_those_of_transformers(
    command_line: CommandLine, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], tmp_path: Path
) -> None:
    """In every layout, on the run's own test pairs, and the accuracy is the run's."""
    result = command_line(*REWARD, *FEW, *options)
    out = tmp_path / "scored.jsonl"
    assert reward_model.main([str(result.run), f"out={out}"]) == 0
    scored = [json.loads(line) for line in out.read_text().splitlines()]
    told, last = capsys.readouterr().out, result.lines(split="test")[-1]
    assert len(scored) == 16 and f"16 pairs, accuracy {last['accuracy']:.3f} [" in told
    assert sum(line["score_chosen"] > line["score_rejected"] for line in scored) / 16 == last["accuracy"]
    for ours, theirs in texts_of(result.run / "policy", scored, num_labels=1):
        assert ours == pytest.approx(theirs, abs=2e-6)


def test_with_an_adapter_only_it_and_the_head_are_trained(command_line: CommandLine) -> None:
    run = command_line(*REWARD, *FEW, "lora.r=2").run
    names = set(load_file(run / "policy" / "adapter_model.safetensors"))
    assert {name for name in names if "lora" not in name} == {"base_model.model.score.weight"}
    base = load_file(run / "policy" / "base" / "model.safetensors")
    again = command_line(*REWARD, *FEW, "comm_round=2", "lora.r=2", "seed=0").run
    other = load_file(again / "policy" / "base" / "model.safetensors")
    assert all(torch.equal(base[name], other[name]) for name in base)


def test_a_reward_model_is_trained_further(command_line: CommandLine) -> None:
    first = command_line(*REWARD, *FEW)
    second = command_line(*REWARD, *FEW, f"model.name_or_path={first.run / 'policy'}")
    assert second.lines(split="test")[0]["accuracy"] == first.lines(split="test")[-1]["accuracy"]


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    options = (*REWARD, "n_train_examples=60", "n_test_examples=16", "output_dir=runs", "cache_dir=cache")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    assert launch(tmp_path / "whole", *options, "comm_round=2").code == 0
    assert launch(tmp_path / "cut", *options, "comm_round=1").code == 0
    cut, whole = only_run(tmp_path / "cut"), only_run(tmp_path / "whole")
    assert cut is not None and whole is not None
    assert launch(tmp_path / "cut", f"resume={cut}", "comm_round=2").code == 0
    weights = [(run / "policy" / "model.safetensors").read_bytes() for run in (cut, whole)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("adapter", [(), ("lora.r=2",)])
def test_a_round_of_a_run_scores(
    command_line: CommandLine, capsys: pytest.CaptureFixture[str], adapter: tuple[str, ...]
) -> None:
    result = command_line(*REWARD, *FEW, *adapter)
    assert reward_model.main([str(result.run), "round=1"]) == 0
    accuracy = result.lines(split="test")[-1]["accuracy"]
    assert f"16 pairs, accuracy {accuracy:.3f} [" in capsys.readouterr().out


@pytest.fixture
def trained(command_line: CommandLine) -> Result:
    return command_line(*REWARD, *FEW)


def test_it_judges_and_scores_single_responses(
    trained: Result, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scored, out = tmp_path / "scored.jsonl", tmp_path / "judged.jsonl"
    assert reward_model.main([str(trained.run), f"out={scored}"]) == 0
    pairs = [json.loads(line) for line in scored.read_text().splitlines()]
    assert judge.main([str(scored), f"judge=reward_model:{trained.run}", f"out={out}"]) == 0
    winners = {line["response_a"]: line["winner"] for line in map(json.loads, out.read_text().splitlines())}
    for pair in pairs:
        assert winners[pair["chosen"]] == ("a" if pair["score_chosen"] > pair["score_rejected"] else "b")
    single = tmp_path / "single.jsonl"
    records = [{"prompt": pair["prompt"], "completion": pair["chosen"]} for pair in pairs]
    single.write_text("".join(json.dumps(record) + "\n" for record in records))
    capsys.readouterr()
    assert reward_model.main([str(trained.run), str(single), f"out={out}"]) == 0
    assert "16 responses, mean score " in capsys.readouterr().out
    found = [json.loads(line)["score"] for line in out.read_text().splitlines()]
    assert found == pytest.approx([pair["score_chosen"] for pair in pairs], abs=1e-6)


@pytest.mark.parametrize("command", [chat.main, evaluate.main])
def test_commands_that_want_responses_refuse_it(
    trained: Result, command: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([str(trained.run)]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is a reward model, which writes no responses; scripts.reward_model scores with it" in told


def test_a_policy_is_no_reward_model(gpt2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reward_model.main([str(gpt2), separable(tmp_path)]) == 2
    assert "is no reward model: it has no value head; main.py loss=reward trains one" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("sample_during_eval=true",), "sample_during_eval=true has no effect with loss=reward"),
        (("online.judge=lexicon", 'online.rule="{a: 1}"'), "online.judge=lexicon has no effect with loss=reward"),
    ],
)
def test_what_it_cannot_follow_is_refused(command_line: CommandLine, options: tuple[str, ...], told: str) -> None:
    result = command_line(*REWARD, *FEW, *options)
    assert result.code == 2 and told in result.err and result.err.count("\n") == 1, result.err


def test_processes_that_split_a_model_are_refused() -> None:
    with pytest.raises(ValueError, match="trainer=FSDPTrainer cannot split a reward model yet"):
        check_reward(Config(trainer="FSDPTrainer"))
