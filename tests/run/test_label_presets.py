"""The presets of the best-of-four labels, under torchrun: what a pass over them trains, keeps and shows."""

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fed.config.groups import ModelSettings
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.tracking.line_files import read_lines
from support.good_inputs import save_gpt2

ROOT = Path(__file__).parents[2]
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
LONGEST = 300  # seconds
GOOD, BAD = (" good fine nice", " poor weak dull")


def labels(file: Path) -> Path:
    """Write labels of texts in which the best one says the good words."""
    rng, records = random.Random(0), []
    for number in range(90):
        best = rng.randrange(4)
        samples = {f"sample{k}": (GOOD if k == best else BAD) + f" {rng.randrange(9)}" for k in range(4)}
        records.append({"query": f"Review {number}: we saw it", **samples, "best": best})
    file.parent.mkdir()
    file.write_text(json.dumps(records))
    return file.parent


def torchrun(folder: Path, *typed: str) -> str:
    log = folder / "log"
    with log.open("w") as out:
        command = [*TORCHRUN, str(ROOT / "main.py"), *typed]
        ended = subprocess.run(command, cwd=folder, stdout=out, stderr=out, timeout=LONGEST, check=False)
    assert ended.returncode == 0, log.read_text()[-3000:]
    return log.read_text()


@pytest.mark.parametrize(("preset", "tokens"), [("sentiment_gpt2", 24), ("tldr60k_gpt2", 75)])
def test_two_processes_train_on_best_of_four_labels(tmp_path: Path, preset: str, tokens: int) -> None:
    data, model = labels(tmp_path / "labels" / "offline.json"), tmp_path / "gpt2"
    save_gpt2(model, positions=575)
    said = torchrun(
        tmp_path,
        *[f"experiment={preset}", f"data_dir={data}", f"model.name_or_path={model}"],
        *["lr=0.01", "n_eval_model_samples=3", "num_threads=1", "output_dir=runs", "cache_dir=cache"],
    )
    (run,) = tmp_path.glob(f"runs/{preset}/*")
    assert "2 processes: each model split over 2" in said and "float32 on cpu" in said

    lines = list(read_lines(run / "metrics.jsonl"))
    before, after = (line for line in lines if line["who"] == "server" and line["split"] == "test")
    assert before["ties"] == 1 and after["accuracy"] > 0.9 and after["examples"] == 27

    rows = list(read_lines(run / "samples.jsonl"))
    assert [row["round"] for row in rows] == [0] * 3 + [1] * 3 and len({row["prompt"] for row in rows}) == 3
    assert all(GOOD in row["chosen"] for row in rows)
    assert all(row["policy"] == row["reference"] for row in rows[:3])
    assert any(row["policy"] != row["reference"] for row in rows[3:])
    assert min(length(row["policy"]) for row in rows) >= tokens, (
        "each token is a byte here, and special ones are longer"
    )

    shards = sorted((run / "checkpoints" / "round-1" / "weights").glob("*.safetensors"))
    assert len(shards) == 2
    full = AutoModelForCausalLM.from_pretrained(run / "policy").state_dict()
    assert {tensor.dtype for tensor in load_file(shards[0]).values()} == {torch.float32}
    settings = ModelSettings(name_or_path=str(model), archive=str(run / "checkpoints" / "round-1"))
    again: dict[str, Any] = load_policy(settings, Placement(torch.device("cpu"))).model.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in full.items())


def length(text: str) -> int:
    """Count bytes; what is no UTF-8 is one character for a byte or for several."""
    return sum(3 if character == "\N{REPLACEMENT CHARACTER}" else len(character.encode()) for character in text)
