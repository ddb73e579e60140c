"""The command of lm-evaluation-harness on an exported policy, and on an adapter; skipped where it is not installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from fed.model.demo import demo_tokenizer
from scripts.export import main
from support.command_line import SMALL, CommandLine

# The harness may have an environment of its own: all it needs of a policy is its folder.
PROGRAM = shutil.which("lm_eval", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no lm_eval on the PATH: pip install -e '.[eval]'")
TINY = (*SMALL, "max_length=112", "max_prompt_length=64", "batch_size=4", "lr=0.2", "lora.r=2")
SUMS = [{"question": f"{n} + {n % 7}", "choices": [str(n + n % 7 + k) for k in (0, 1, 10)]} for n in range(20)]
TASK = {
    "task": "sums",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "sums.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Question: {{question}}\nAnswer:",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "0",
    "metric_list": [{"metric": "acc"}],
}


def evaluate(folder: Path, model: str) -> tuple[float, list[list[float]]]:
    """Return the accuracy that the harness gives, and the log-likelihoods of each question's choices."""
    (folder / "sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in SUMS))
    (folder / "sums.yaml").write_text(yaml.safe_dump(TASK))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    asked = ["--model", "hf", "--model_args", model, "--tasks", "sums", "--include_path", ".", "--device", "cpu"]
    done = subprocess.run(
        [str(PROGRAM), *asked, "--batch_size", "8", "--log_samples", "--output_path", "found"],
        cwd=folder, env={**os.environ, **offline, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (results,), (samples,) = (list((folder / "found").rglob(name)) for name in ("results*.json", "samples*.jsonl"))
    lines = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda line: line["doc_id"])
    accuracy = json.loads(results.read_text())["results"]["sums"]["acc,none"]
    shutil.rmtree(folder / "found")
    return accuracy, [[float(choice[0]) for choice in line["filtered_resps"]] for line in lines]


def scores(folder: Path) -> list[list[float]]:
    """Return the same log-likelihoods by transformers."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), demo_tokenizer()

    def logp(question: str, choice: str) -> float:
        prompt, answer = (tokenizer(text)["input_ids"] for text in (f"Question: {question}\nAnswer:", f" {choice}"))
        with torch.no_grad():
            logits: Any = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        return float(logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None]).sum())

    return [[logp(line["question"], choice) for choice in line["choices"]] for line in SUMS]


def test_the_harness_scores_a_policy_and_its_adapter_alike(command_line: CommandLine, tmp_path: Path) -> None:
    run = command_line(*TINY).run
    assert main([str(run), f"out={tmp_path / 'mine'}"]) == 0
    accuracy, merged = evaluate(tmp_path, f"pretrained={tmp_path / 'mine'}")
    policy = run / "policy"  # the base of a run has no tokenizer, the adapter has
    _, adapter = evaluate(tmp_path, f"pretrained={policy / 'base'},peft={policy},tokenizer={policy}")
    expected = scores(tmp_path / "mine")
    assert len(merged) == 20 and torch.allclose(torch.tensor(merged), torch.tensor(expected), atol=1e-3)
    assert torch.allclose(torch.tensor(adapter), torch.tensor(expected), atol=1e-3)
    assert accuracy == sum(max(line) == line[0] for line in expected) / 20
    base = scores(policy / "base")
    assert not torch.allclose(torch.tensor(base), torch.tensor(expected), atol=1e-2), "the adapter counts"
