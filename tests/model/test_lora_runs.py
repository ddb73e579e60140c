"""Runs of the command line with `lora.r`: the adapter alone moves, is written and loads; mistakes are refused."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoTokenizer

import main
from fed.model.arrays import model_tensors
from fed.model.demo import demo_model, demo_tokenizer
from fed.model.lora import base_state
from fed.seeding import seed_globals
from run import experiment
from run import prepare as planning
from run.plan import Plan
from support.adapters import logps, reference, reloaded
from support.configured import settings_of


@dataclass(frozen=True)
class Run:
    """The plan and the folder of one run of the command line."""

    plan: Plan
    folder: Path

    def tests(self) -> list[dict[str, Any]]:
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [line for line in lines if line["who"] == "server" and line["split"] == "test"]


def command_line(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    folders = (f"output_dir={folder / 'runs'}", f"cache_dir={folder / 'cache'}")
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments, *folders])
    GlobalHydra.instance().clear()
    try:
        return main.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    finally:
        GlobalHydra.instance().clear()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Run two clients for two rounds with r=4."""
    plans, prepare, folder = [], planning.prepare, tmp_path_factory.mktemp("run")

    def keep(settings: Any, device: Any) -> Plan:
        plans.append(prepare(settings, device))
        return plans[0]

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(planning, "prepare", keep)
        monkeypatch.setattr(experiment, "pictures", lambda run_dir: run_dir / "curves.png")
        small = ("client_num_in_total=2", "comm_round=2", "n_train_examples=80", "n_test_examples=16", "lr=5e-3")
        assert command_line(monkeypatch, folder, "lora.r=4", *small) == 0
    yield Run(plans[0], next(folder.glob("runs/*/*")))


def test_a_federation_starts_at_the_reference_and_moves_the_adapter_only(run: Run) -> None:
    start, *_, end = run.tests()
    assert (start["accuracy"], start["margin"], start["ties"], start["log_ratio"]) == (0, 0, 1, 0)
    assert abs(end["margin"]) > 1e-4
    policy = run.plan.policy
    assert all(tensor.abs().max() > 0 for name, tensor in model_tensors(policy.model).items() if ".lora_B." in name)
    seed_globals(0, "model")
    fresh = demo_model(demo_tokenizer()).state_dict()
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in base_state(policy.model).items())


def test_a_federation_leaves_an_adapter_that_transformers_loads_as_the_same_policy(run: Run) -> None:
    folder, policy = run.folder / "policy", run.plan.policy
    adapter, base = (folder / name for name in ("adapter_model.safetensors", "base/model.safetensors"))
    assert adapter.stat().st_size < base.stat().st_size / 40
    assert not (folder / "model.safetensors").exists()
    loaded = reloaded(policy, folder)
    np.testing.assert_allclose(logps(loaded), logps(policy), rtol=1e-5)  # the run may multiply by another library
    assert np.abs(np.subtract(logps(loaded), reference(policy))).max() > 0.01
    assert AutoTokenizer.from_pretrained(folder)("tea")["input_ids"] == policy.tokenizer("tea")["input_ids"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("lora.r=4 lora.target_modules=[q_proj,nope]", "lora.target_modules=nope names no down_proj, q_proj, v_proj"),
        ("lora.r=4 lora.target_modules=[lm_head]", "lora.target_modules=lm_head below its head"),
        ("lora.r=4 lora.target_modules=[mlp]", "lora.target_modules=mlp names no linear"),
        ("lora.r=-1", "lora.r=-1 at least 0"),
        ("lora.r=x", "lora.r=x whole number"),
        ("lora.alpha=8", "lora.alpha has no effect lora.r=0"),
        ("+lora.rank=1", "unknown key lora.rank"),
    ],
)
def test_mistakes_are_told_in_one_line(
    typed: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command_line(monkeypatch, tmp_path, *typed.split()) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    assert all(word in told for word in words.split()), told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("lora.r=4 lora.alpha=0", "lora.alpha=0.0 more than 0"),
        ("lora.r=4 lora.alpha=.nan", "lora.alpha=nan finite"),
        ("lora.r=4 lora.alpha=.inf", "lora.alpha=inf finite"),
        ("lora.r=4 lora.target_modules=[]", "lora.target_modules is empty"),
        ("lora.target_modules=[q_proj]", "lora.target_modules has no effect with lora.r=0; leave it out"),
        ("lora.r=0 lora.alpha=1", "lora.alpha has no effect with lora.r=0"),
    ],
)
def test_values_that_cannot_work_are_refused(typed: str, words: str) -> None:
    with pytest.raises(ValueError) as refusal:
        settings_of(*typed.split())
    assert all(word in str(refusal.value) for word in words.split()), refusal.value
