"""Whole runs on a CPU and on a GPU: precision, resuming, adapters, samples and what a run says of its device."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from support.command_line import SMALL, CommandLine
from support.launched import run_main

TRAINS = [*SMALL, "local_steps=4", "batch_size=4", "alpha=0", "warmup_steps=0", "lr=5e-3"]


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in lines]


def test_a_run_in_bfloat16_has_nearly_the_curve_of_one_in_float32(
    command_line: CommandLine, device: torch.device
) -> None:
    exact, rounded = (
        losses(command_line(*TRAINS, f"device={device}", f"precision={precision}").lines(split="test"))
        for precision in ("float32", "bfloat16")
    )
    moved = abs(exact[-1] - exact[0])
    assert moved > 0.02
    assert exact != rounded == pytest.approx(exact, abs=moved / 3)


@pytest.mark.parametrize("more", [[], ["lora.r=4", "lr=1e-2"]], ids=["all weights", "an adapter"])
def test_a_resumed_run_has_the_curve_of_one_that_was_never_stopped(
    command_line: CommandLine, device: torch.device, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit on a CPU; a GPU may add in another order."""
    typed = [*TRAINS, *more, f"device={device}", "client_optimizer=persist"]
    whole = command_line(*typed, "comm_round=3")
    begun = command_line(*typed, "comm_round=1")
    assert run_main(monkeypatch, begun.folder, f"resume={begun.run}", "comm_round=3") == 0
    lines = [json.loads(line) for line in (begun.run / "metrics.jsonl").read_text().splitlines()]
    found = losses([line for line in lines if (line["who"], line["split"]) == ("server", "test")])
    expected = losses(whole.lines(split="test"))
    assert len(set(found)) == 4
    assert found == (expected if device.type == "cpu" else pytest.approx(expected, rel=1e-4))


def test_an_untrained_policy_ties_with_its_reference(command_line: CommandLine, device: torch.device) -> None:
    first = command_line(*SMALL, f"device={device}", "local_steps=1").lines(split="test")[0]
    assert (first["ties"], first["accuracy"]) == (1, 0)


def test_samples_are_drawn_and_a_deterministic_run_gives_the_same_bits_again(
    command_line: CommandLine, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a workspace of known size for cuBLAS torch refuses matrix products on a GPU."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    typed = [*TRAINS, f"device={device}", "deterministic=true", "sample_during_eval=true", "n_eval_model_samples=2"]
    one, other = command_line(*typed), command_line(*typed)
    drawn, again = ((result.run / "samples.jsonl").read_bytes() for result in (one, other))
    assert drawn and drawn == again
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert losses(one.lines(split="test")) == losses(other.lines(split="test"))


def test_a_run_names_its_device_and_the_memory_that_it_took_there(
    command_line: CommandLine, device: torch.device
) -> None:
    run: Path = command_line(*SMALL, f"device={device}", "local_steps=1").run
    told = json.loads((run / "environment.json").read_text())["device"]
    summary = json.loads((run / "summary.json").read_text())
    assert told == (torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu")
    assert ("peak_device_memory_gb" in summary) == (device.type == "cuda")
