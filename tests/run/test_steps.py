"""A run says what it does before it trains, from before the libraries are loaded, and in one voice."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fed.data import loader, tokens
from fed.tracking import steps
from support.command_line import SMALL, CommandLine
from support.launched import ROOT, start

STEPS = (
    "reading the data: demo ...",
    "loading the model: demo ...",
    r"making tokens of \d+ pairs ...",
    "fedpo: federated, 2 clients x 1 round, fedpo",
    r"reading reference log-probs from .*cache, or computing them ...",
    "evaluating the model before training ...",
    "round 0/1  .*test loss 0.693  test margin 0.000",
    "round 1/1  .*test loss 0.[0-9]+  test margin -?[0-9.]+",
)


def steps_in(text: str) -> list[str]:
    """Return the steps whose lines the text holds, in its order; a line that comes twice is twice there."""
    return [step for line in text.splitlines() for step in STEPS if re.match(step, line)]


def test_every_step_is_told_once_and_in_order_without_control_characters(command_line: CommandLine) -> None:
    result = command_line(*SMALL, "debug=true")
    assert result.code == 0, result.err
    assert steps_in(result.out) == [*STEPS]
    assert all(character.isprintable() or character == "\n" for character in result.out)


def test_reading_and_making_tokens_tell_how_far_they_are(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader, "TELL_EVERY", 20)
    monkeypatch.setattr(tokens, "PART", 20)
    quiet = command_line(*SMALL, "output_dir=quiet")
    assert "rows of the train" not in quiet.out, "within ten seconds nothing is told"
    monkeypatch.setattr(steps, "SECONDS", 0)
    told = command_line(*SMALL, "output_dir=told")
    assert told.code == 0, told.err
    assert all(f"\n  {done} rows of the train split are read\n" in told.out for done in (20, 40, 60))
    assert re.findall(r"  tokens of (\d+) pairs are made", told.out)[-1] == re.search(r"tokens of (\d+)", told.out)[1]


def test_the_first_line_comes_before_the_libraries(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch is imported')")
    done = subprocess.run(
        [sys.executable, ROOT / "main.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("loading torch, transformers and Flower ...\n", "torch is imported\n")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("datasets=[hh] data_dir=nowhere", "data_dir=nowhere does not exist; give a folder or"),
        ("partition=own client_num_in_total=1 client_data=[no.jsonl]", "there is no file no.jsonl; give"),
        ("model=blank_model model.name_or_path=./nowhere", "model directory ./nowhere does not exist"),
        ("model.tokenizer_name_or_path=/nowhere", "model directory /nowhere does not exist"),
        ("model=blank_model model.gguf_file=no.gguf", "model.gguf_file=no.gguf: no such file"),
        ("model.archive=no.pt", "archive no.pt does not exist; give an HF directory"),
        ("resume=nowhere", "resume=nowhere is not the folder of a run: it has no config.yaml"),
        ("resume=latest output_dir=nowhere", "resume=latest finds no run in nowhere/fedpo"),
    ],
)
def test_a_place_that_does_not_exist_is_told_before_the_libraries(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, typed: str, words: str
) -> None:
    monkeypatch.setattr(steps, "say_loading", lambda: pytest.fail("libraries are loaded"))
    result = command_line(*typed.split())
    assert result.code == 2 and words in result.err


def test_of_two_processes_one_speaks(tmp_path: Path) -> None:
    arguments = [*SMALL, "clients_in_parallel=2", "device=cpu", "debug=true", "output_dir=runs", "num_threads=1"]
    process = start(tmp_path / "two", ROOT / "main.py", *arguments)
    code = process.wait(timeout=300)
    out = (tmp_path / "two" / "out").read_text()
    assert code == 0, (tmp_path / "two" / "err").read_text()
    assert out.splitlines()[:2] == ["loading torch, transformers and Flower ...", "starting 2 processes ..."]
    assert out.count("loading torch") == 1 and steps_in(out) == [*STEPS]
