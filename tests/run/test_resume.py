"""Tests of real runs that are killed or stopped at a chosen instant: resumed, they end with the same bytes."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import clients.step
import clients.trainer
import fed.checkpoints.checkpointer
import fed.checkpoints.serialize
import fed.distributed.stop
import fed.model.weight_files
import server.strategies
from fed.tracking import run_folder
from fed.tracking.run_folder import locked
from fed.tracking.tracker import Tracker
from run import experiment
from support.good_inputs import save_gpt2
from support.separate_runs import SMALL, call, only_run, outcome

PERSIST = ("client_optimizer=persist", "optimizer=AdamW", "lr=1e-4")
# Of what is called, which call is cut off, and whether before it or after it.
INSTANTS: dict[str, tuple[Any, str, int, str]] = {
    "before anything is trained": (Tracker, "server", 1, "before"),
    "in a client's training": (clients.step.Step, "take", 8, "after"),
    "when a client is scored": (clients.trainer.LocalTrainer, "evaluate", 5, "before"),
    "when a client's state is written but not its reply": (fed.checkpoints.serialize, "save_file", 3, "after"),
    "when a reply is written but not in its place": (fed.checkpoints.serialize, "save_file", 4, "after"),
    "in the aggregate": (server.strategies.RunningMean, "add", 5, "after"),
    "when a round is logged but not kept": (Tracker, "server", 4, "after"),
    "when a checkpoint's weights are written": (fed.model.weight_files, "write", 2, "after"),
    "before a checkpoint is in its place": (Path, "rename", 2, "before"),
    "when a checkpoint is in its place": (Path, "rename", 2, "after"),
    "when a checkpoint removes what it replaces": (fed.checkpoints.checkpointer.Checkpointer, "clean", 3, "before"),
    "before the final model is written": (experiment, "save_policy", 1, "before"),
    "when the final model is written": (experiment, "save_policy", 1, "after"),
}


def at(owner: Any, name: str, number: int, when: str, signum: int = signal.SIGKILL) -> Callable[[], None]:
    """Return a function that makes a process send itself the signal at the call of that number."""

    def arm() -> None:
        original, calls = getattr(owner, name), iter(range(1, 10**9))

        def called(*arguments: Any, **named: Any) -> Any:
            due = next(calls) == number
            if due and when == "before":
                os.kill(os.getpid(), signum)
            found = original(*arguments, **named)
            if due and when == "after":
                os.kill(os.getpid(), signum)
            return found

        setattr(owner, name, called)

    return arm


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Return the folder and the outcome of a run that nothing happens to."""
    found: dict[tuple[str, ...], tuple[Path, dict[str, Any]]] = {}

    def run(*typed: str) -> tuple[Path, dict[str, Any]]:
        if typed not in found:
            folder = tmp_path_factory.mktemp("whole")
            ended = call(folder, *SMALL, *typed)
            assert ended.code == 0, ended.text
            found[typed] = folder, outcome(only_run(folder))
        return found[typed]

    return run


def resumed(folder: Path, *typed: str) -> dict[str, Any]:
    ended = call(folder, "resume=latest", "output_dir=runs", *typed)
    assert ended.code == 0, ended.text
    return outcome(only_run(folder))


@pytest.mark.parametrize("instant", INSTANTS)
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(whole, tmp_path: Path, instant: str) -> None:
    folder, expected = whole(*PERSIST)
    killed = call(tmp_path, *SMALL, *PERSIST, f"cache_dir={folder}/cache", before=at(*INSTANTS[instant]))
    assert killed.code == -signal.SIGKILL, killed.text
    assert resumed(tmp_path) == expected


def test_the_dropout_of_an_adapter_is_drawn_again_when_a_run_goes_on_in_the_middle_of_a_client(
    whole, tmp_path: Path
) -> None:
    typed = ("lora.r=2", "lora.dropout=0.3", "lr=1e-3", "alpha=1")
    folder, expected = whole(*typed)
    assert expected != whole(*typed, "seed=1")[1]
    before = at(clients.step.Step, "take", 8, "after", signal.SIGTERM)
    stopped = call(tmp_path, *SMALL, *typed, f"cache_dir={folder}/cache", before=before)
    assert stopped.code == 143, stopped.text
    assert resumed(tmp_path) == expected


@pytest.mark.parametrize(
    ("signum", "code", "instant"),
    [
        (signal.SIGTERM, 143, (clients.step.Step, "take", 8, "before")),
        (signal.SIGINT, 130, (clients.step.Step, "take", 11, "after")),
        (signal.SIGTERM, 143, (Tracker, "server", 3, "before")),
    ],
)
def test_a_run_that_is_asked_to_stop_keeps_the_steps_it_has_done(
    whole, tmp_path: Path, signum: int, code: int, instant: tuple[Any, ...]
) -> None:
    """Steps of a client that was in the middle of its training are kept too: none is taken twice."""
    folder, expected = whole(*PERSIST)
    stopped = call(tmp_path, *SMALL, *PERSIST, f"cache_dir={folder}/cache", before=at(*instant, signum))
    assert stopped.code == code, stopped.text
    assert stopped.text.count("stopped by SIG") == 1 and f"resume=runs/fedpo/{only_run(tmp_path).name}" in stopped.text
    count = tmp_path / "steps"

    def counting() -> None:
        original = clients.step.Step.take

        def take(*arguments: Any) -> Any:
            with count.open("a") as file:
                file.write(".")
            return original(*arguments)

        clients.step.Step.take = take

    ended = call(tmp_path, "resume=latest", "output_dir=runs", before=counting)
    assert ended.code == 0 and outcome(only_run(tmp_path)) == expected
    if instant[1] == "take":
        steps = sum(expected[f"Client-{k}/counters/updates"][-1][1] for k in range(3))
        assert len(count.read_text()) == steps - instant[2]


def test_a_run_that_is_asked_twice_ends_at_once(tmp_path: Path) -> None:
    def twice() -> None:
        fed.distributed.stop.SAME = 0.0
        at(clients.step.Step, "take", 3, "before", signal.SIGTERM)()
        at(clients.step, "clip_grad_norm", 3, "before", signal.SIGTERM)()

    ended = call(tmp_path, *SMALL, before=twice)
    assert ended.code == -signal.SIGTERM and "stopped by" not in ended.text


@pytest.mark.parametrize("mode", ["federated", "local"])
def test_drawn_responses_go_on_too(whole, tmp_path: Path, mode: str) -> None:
    """The reference's responses are drawn before training and not again."""
    typed = (f"mode={mode}", "sample_during_eval=true", "n_eval_model_samples=2", "max_length=128")
    folder, expected = whole(*typed)
    instant = at(clients.step.Step, "take", 8, "after")
    killed = call(tmp_path, *SMALL, *typed, f"cache_dir={folder}/cache", before=instant)
    assert killed.code == -signal.SIGKILL, killed.text
    assert resumed(tmp_path) == expected
    assert expected["samples.jsonl"].count(b"\n") == 2 * 4 * (3 if mode == "local" else 1)


@pytest.mark.parametrize("mode", ["federated", "local"])
def test_fresh_pairs_are_the_same_when_a_run_goes_on(whole, tmp_path: Path, mode: str) -> None:
    """Client 2 is cut off in round 2, which draws none, and its last pairs come from its context."""
    rule = ("online.judge=lexicon", 'online.rule="{per_word: 1}"', "online.every=2", "online.mix=0.3")
    typed = (f"mode={mode}", *rule, "online.max_new_tokens=12", "online.eval_prompts=4", "max_length=112")
    folder, expected = whole(*typed)
    killed = call(
        tmp_path, *SMALL, *typed, f"cache_dir={folder}/cache", before=at(clients.step.Step, "take", 7, "after")
    )
    assert killed.code == -signal.SIGKILL, killed.text
    assert resumed(tmp_path) == expected


def test_a_finished_run_can_be_given_more_rounds(whole, tmp_path: Path) -> None:
    folder, expected = whole()
    ended = call(tmp_path, *SMALL, "comm_round=2", f"cache_dir={folder}/cache")
    assert ended.code == 0, ended.text
    assert resumed(tmp_path, "comm_round=3") == expected
    environment = only_run(tmp_path) / "environment.json"
    environment.write_text(environment.read_text().replace('"python": "', '"python": "2.'))
    again = call(tmp_path, "resume=latest", "output_dir=runs")
    assert again.code == 0 and outcome(only_run(tmp_path)) == expected
    told = "this run has finished its 3 rounds: nothing is trained; comm_round=N gives it more"
    assert told in again.text.split("loading the model")[0] and "has finished" not in ended.text
    assert "warning: the run began with python 2.3" in again.text and again.text.count("warning: the run") == 1
    refused = call(tmp_path, "resume=latest", "output_dir=runs", "comm_round=2")
    assert refused.code == 2 and "comm_round=2 is less than the 3 rounds that are done" in refused.text


def test_a_run_that_began_before_modules_moved_is_resumed(whole, tmp_path: Path) -> None:
    folder, expected = whole("partition=contiguous")
    ended = call(tmp_path, *SMALL, "partition=contiguous", "comm_round=2", f"cache_dir={folder}/cache")
    assert ended.code == 0, ended.text
    config = only_run(tmp_path) / "config.yaml"
    old = config.read_text().replace("fed.data.partition.", "fed.partition.")
    assert "_target_: fed.partition.ContiguousPartitioner" in old
    config.write_text(old)
    assert resumed(tmp_path, "comm_round=3") == expected


@pytest.mark.parametrize(
    "typed", [("checkpoint_every=2",), ("checkpoint_every=0",), ("checkpoint_within_round=false",)]
)
def test_fewer_checkpoints_lose_time_but_no_bit(whole, tmp_path: Path, typed: tuple[str, ...]) -> None:
    folder, expected = whole(*typed)
    instant = at(clients.step.Step, "take", 16, "after")
    killed = call(tmp_path, *SMALL, *typed, f"cache_dir={folder}/cache", before=instant)
    assert killed.code == -signal.SIGKILL and not list(tmp_path.rglob("*.begun"))
    assert resumed(tmp_path) == expected


def test_data_or_a_model_that_changed_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_gpt2(folder)
    ended = call(tmp_path, *SMALL, "comm_round=1", "model=blank_model", f"model.name_or_path={folder}")
    assert ended.code == 0, ended.text
    run = only_run(tmp_path)
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    refused = call(tmp_path, "resume=latest", "output_dir=runs", "comm_round=2")
    assert refused.code == 1 and "belongs to a run with another model before training" in refused.text
    partition = run / "partition.json"
    partition.write_text(partition.read_text().replace("0", "1", 1))
    refused = call(tmp_path, "resume=latest", "output_dir=runs")
    assert refused.code == 2 and "the data differ from those recorded in its partition.json" in refused.text


def test_two_processes_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "PATIENCE", 0.3)
    assert call(tmp_path, *SMALL, "comm_round=1").code == 0
    with locked(only_run(tmp_path)):
        refused = call(tmp_path, f"resume={only_run(tmp_path)}")
    assert refused.code == 2 and "is in use by another process" in refused.text
