"""Tests of whole runs with `privacy=`: what they write about it, how they end, and how they are resumed."""

import json
import math
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_resume import at, resumed, whole  # noqa: F401 (a fixture)

import fed.checkpoints.checkpointer
from fed import privacy
from fed.tracking.tracker import Tracker
from support.command_line import CommandLine, Result, refused
from support.separate_runs import SMALL, call, only_run, outcome

CENTRAL = ("privacy=central_dp", "strategy=fedavg")
LOCAL = ("privacy=local_dp", "strategy=fedavg")
TINY = ("client_num_in_total=3", "n_train_examples=24", "n_test_examples=6", "num_threads=1")
ORDERS = (*(1 + x / 10 for x in range(1, 100)), *range(11, 64))


def by_hand(noise_multiplier: float, releases: int, delta: float) -> float:
    """Compute epsilon as `tests/support/private_rounds.py` derives it; here the best order is far below 64."""
    return min(
        releases * a / (2 * noise_multiplier**2) + math.log((a - 1) / a) - math.log(delta * a) / (a - 1) for a in ORDERS
    )


def spent(result: Result) -> list[dict[str, Any]]:
    return result.lines("server", "privacy")


@pytest.mark.parametrize("kind", [CENTRAL, LOCAL], ids=lambda kind: kind[0])
def test_a_run_writes_the_epsilon_of_the_formula_after_each_round(command_line: CommandLine, kind: Any) -> None:
    result = command_line(*kind, *TINY, "comm_round=3", "privacy.noise_multiplier=2", "privacy.delta=1e-4")
    costs = [by_hand(2.0, rounds, 1e-4) for rounds in (1, 2, 3)]
    lines = spent(result)
    assert [line["round"] for line in lines] == [line["releases"] for line in lines] == [1, 2, 3]
    assert [line["epsilon"] for line in lines] == pytest.approx(costs, rel=1e-9)
    assert {line["delta"] for line in lines} == {1e-4}
    summary = json.loads((result.run / "summary.json").read_text())
    assert summary["final"]["privacy"]["epsilon"] == lines[-1]["epsilon"]
    events = EventAccumulator(str(result.run / "tensorboard" / "Server")).Reload().Scalars("privacy/epsilon")
    assert [(event.step, pytest.approx(event.value)) for event in events] == list(enumerate(costs, start=1))
    assert f"epsilon {costs[-1]:.3f}" in result.out and f"epsilon {costs[-1]:.3g} at delta 0.0001 after 3" in result.out


def test_a_run_without_privacy_says_nothing_of_it(command_line: CommandLine) -> None:
    result = command_line(*TINY, "comm_round=1")
    assert spent(result) == [] and "epsilon" not in result.out
    assert "privacy" not in json.loads((result.run / "summary.json").read_text())["final"]


def test_flowers_adaptive_wrappers_say_that_they_are_not_accounted_for(command_line: CommandLine) -> None:
    result = command_line(*TINY, "comm_round=1", "strategy=dp_client_adaptive")
    assert "no epsilon is accounted for" in result.out and spent(result) == []


def test_a_round_in_which_a_client_fails_leaves_the_model_and_costs_nothing(command_line: CommandLine) -> None:
    result = command_line(*CENTRAL, *TINY, "comm_round=2", "faults.dropout_rate=1", "min_fit_clients=0")
    assert [(line["releases"], line["epsilon"]) for line in spent(result)] == [(0, 0.0), (0, 0.0)]
    assert result.out.count("no aggregate, because not every client answered") == 2
    assert [line["accuracy"] for line in result.lines("server", "test")] == [0.0] * 3
    # Under local privacy the server cannot know that nothing was sent.
    local = command_line(*LOCAL, *TINY, "comm_round=2", "faults.dropout_rate=1", "min_fit_clients=0")
    assert [line["releases"] for line in spent(local)] == [1, 2]


@pytest.mark.parametrize("kind", [CENTRAL, LOCAL], ids=lambda kind: kind[0])
def test_a_run_ends_before_max_epsilon_with_all_results(command_line: CommandLine, kind: Any) -> None:
    """At z = 1 epsilon is 4.73, 7.08, 8.98 after 1, 2, 3 rounds."""
    typed = (*kind, *TINY, "frequency_of_test=5", "comm_round=9")
    limited = command_line(*typed, "privacy.max_epsilon=8")
    assert [round(line["epsilon"], 2) for line in spent(limited)] == [4.73, 7.08]
    assert "one more round would exceed privacy.max_epsilon=8" in limited.out
    assert [line["round"] for line in limited.lines("server", "test")] == [0, 2]
    shorter = command_line(*kind, *TINY, "frequency_of_test=5", "comm_round=2")
    assert (limited.run / "metrics.jsonl").read_bytes() == (shorter.run / "metrics.jsonl").read_bytes()
    policies = [load_file(run / "policy" / "model.safetensors") for run in (limited.run, shorter.run)]
    assert all(torch.equal(policies[0][name], policies[1][name]) for name in policies[0])


@pytest.mark.parametrize("kind", [CENTRAL, LOCAL], ids=lambda kind: kind[0])
def test_a_run_whose_budget_is_spent_trains_no_more_when_it_goes_on(tmp_path: Path, kind: Any) -> None:
    ended = call(tmp_path, *SMALL, *kind, "privacy.max_epsilon=8")
    assert ended.code == 0, ended.text
    before = outcome(only_run(tmp_path))
    assert resumed(tmp_path, "comm_round=12") == before


@pytest.mark.parametrize(
    ("kind", "instant"),
    [
        (CENTRAL, (Tracker, "privacy", 2, "after")),
        (LOCAL, (Tracker, "privacy", 2, "after")),
        (CENTRAL, (Tracker, "server", 5, "before")),
        (CENTRAL, (fed.checkpoints.checkpointer.Checkpointer, "clean", 2, "before")),
    ],
    ids=lambda value: value[0] if value in (CENTRAL, LOCAL) else f"{value[1]} {value[2]}",
)
def test_a_killed_run_goes_on_to_the_same_bytes_and_the_same_epsilon(
    whole: Any,  # noqa: F811
    tmp_path: Path,
    kind: Any,
    instant: Any,
) -> None:
    folder, expected = whole(*kind)
    killed = call(tmp_path, *SMALL, *kind, f"cache_dir={folder}/cache", before=at(*instant))
    assert killed.code == -signal.SIGKILL, killed.text
    assert resumed(tmp_path) == expected


def test_a_missing_accountant_is_refused_before_anything_is_written(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    privacy.epsilon.cache_clear()
    refused(command_line(*CENTRAL, *TINY), "dp-accounting", "pip install -c constraints.txt -e '.[privacy]'")
