"""What a run says before it starts, and the check that it starts from its reference."""

import json
from pathlib import Path

import pytest

from fed.files import read_array, write_array
from run import header
from support.command_line import SMALL, CommandLine
from support.rows import pairs, write


@pytest.mark.parametrize(
    ("typed", "first", "data"),
    [
        ([], "fedpo: federated, 2 clients x 1 round, fedpo\n", "clients train on 36 pairs (18 each) and hold out 2,"),
        (["mode=centralized"], "fedpo: centralized, 1 client x 1 round\n", "the client trains on 36 pairs"),
        (
            ["strategy=fedpo_published"],
            "2 clients x 1 round, fedpo_published\n",
            "clients train on 32 pairs (16 each),",
        ),
        (["strategy.decay=constant"], "2 clients x 1 round, FeDPO\n", "(18 each)"),
        (["strategy=fedadam", "strategy.eta=0.5"], "2 clients x 1 round, fedadam\n", "(18 each)"),
    ],
)
def test_the_header_names_the_strategy_as_it_is_typed_and_counts_every_pair(
    command_line: CommandLine, typed: list[str], first: str, data: str
) -> None:
    out = command_line(*SMALL, *typed).out
    assert first in out and data in out


def test_header_and_environment_say_how_the_cpu_computes(command_line: CommandLine) -> None:
    result = command_line(*SMALL, "cpu_matmul=onednn", "keep_freed_memory=false")
    text = "1 thread, freed memory returned, float32 matrices by oneDNN"
    assert f"cpu: {text}\n" in result.out
    assert json.loads((result.run / "environment.json").read_text())["cpu"] == text


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (["warmup_steps=1"], "steps: 2 per client and round, learning rate up to 0.001\n"),
        (["warmup_steps=9"], "warning: steps: 2 per client and round, learning rate up to 0.0002 of lr=0.001: warm-up"),
        (["warmup_steps=3", "warmup_restarts=false", "comm_round=2"], "learning rate up to 0.001\n"),
        (["warmup_ratio=0.5"], "learning rate up to 0.001\n"),
        (["mode=centralized"], "steps: 3 per client and round"),
        (["client_optimizer=persist", "warmup_steps=1"], "learning rate up to 0.001\n"),
        (
            ["strategy=fedpo_published", "decay_rate=0.5", "decay_target=lr", "warmup_steps=0"],
            "learning rate up to 0.0005: lr=0.001 times decay_rate=0.5\n",
        ),
    ],
)
def test_the_header_says_which_learning_rate_clients_reach(
    command_line: CommandLine, typed: list[str], line: str
) -> None:
    assert line in command_line(*SMALL, "lr=1e-3", *typed).out


@pytest.mark.parametrize(
    ("typed", "advice"),
    [
        (["warmup_steps=9"], "lower warmup_steps=9, or give warmup_ratio=0.1, or give warmup_restarts=false, which"),
        (["warmup_ratio=1"], "lower warmup_ratio=1, or give warmup_restarts=false, which counts over rounds\n"),
        (["warmup_steps=9", "warmup_restarts=false"], "lower warmup_steps=9, or give warmup_ratio=0.1\n"),
        (["warmup_steps=9", "client_optimizer=persist"], "lower warmup_steps=9, or give warmup_ratio=0.1\n"),
    ],
)
def test_only_settings_that_are_not_in_force_are_advised_against_warm_up(
    command_line: CommandLine, typed: list[str], advice: str
) -> None:
    assert f"warm-up takes the rest; {advice}" in command_line(*SMALL, *typed).out


def test_few_validation_pairs_are_told_where_they_decide_weights(command_line: CommandLine) -> None:
    told = (
        "scores clients on 2 pairs, so the accuracies that decide weights and decay have a standard error of up to 0.35"
    )
    assert told in command_line(*SMALL).out
    assert "standard error" not in command_line(*SMALL, "strategy=fedavg").out


def test_names_that_look_like_markup_are_printed_as_they_are(command_line: CommandLine, tmp_path: Path) -> None:
    """Columns beside the pairs, of which ten are named, and the folder of the run."""
    odd = ["[/x]", "[red]", "\x1b[2J", *(f"f{n}" for n in range(20))]
    path = write(tmp_path / "mine.jsonl", [{**pair, **dict.fromkeys(odd, 1)} for pair in pairs(60)])
    result = command_line(*SMALL, "datasets=[files]", f"data_dir={path}", 'exp_name="[red]a"', "local_steps=1")
    assert result.code == 0, result.err
    assert "columns beside the pairs: '\\x1b[2J', [/x], [red], f0, f1, f10, " in result.out
    assert "f14 and 13 more\n" in result.out and "results in runs/[red]a/" in result.out


@pytest.mark.parametrize(("lr", "told"), [("5e-7", True), ("1e-1", False)])
def test_updates_that_bfloat16_weights_lose_are_told(command_line: CommandLine, lr: str, told: bool) -> None:
    result = command_line(*SMALL, "model.policy_dtype=bfloat16", f"lr={lr}")
    assert ("of the bfloat16 weights; precision=bfloat16 computes in bfloat16" in result.out) == told


def test_a_reference_that_does_not_tie_ends_the_run_before_training(command_line: CommandLine, tmp_path: Path) -> None:
    """A kept column was damaged: one log-prob differs by a thousandth."""
    assert command_line(*SMALL).code == 0
    for file in (tmp_path / "cache" / "reference").glob("*.npy"):
        column = read_array(file)
        assert column is not None
        column[0, 0] += 1e-3
        write_array(file, column)
    again = command_line(*SMALL)
    assert again.code == 1 and "log-probs differ on 1 of" in again.err and "remove the folder reference" in again.err
    assert "round 0" not in again.out


def test_what_is_not_read_of_the_data_is_told(command_line: CommandLine, tmp_path: Path) -> None:
    records = [{**record, "score": 1, "text": "x" * 201} for record in pairs(60)]
    path = write(tmp_path / "mine.jsonl", [*records, {**records[0], "prompt": ""}])
    result = command_line(*SMALL, "datasets=[files]", f"data_dir={path}")
    assert "skipped rows: 1 empty prompt\n" in result.out and "not read from the data: text\n" in result.out
    assert "form: pairs of chosen and rejected; text as it is written\n" in result.out
    assert "columns beside the pairs: score\n" in result.out


@pytest.mark.parametrize("in_hardware", [True, False])
def test_emulated_bfloat16_is_told(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, in_hardware: bool
) -> None:
    monkeypatch.setattr(header, "has_bfloat16", lambda: in_hardware)
    result = command_line(*SMALL, "model.fsdp_policy_mp=bfloat16")
    assert result.code == 0, result.err
    assert ("float32 is faster here" in result.out) != in_hardware


def question(number: int) -> str:
    """Return a line of a conversation of its own."""
    record = {"prompt": f"\n\nHuman: What is {number}?\n\nAssistant:", "chosen": " A number.", "rejected": " No."}
    return json.dumps(record) + "\n"


def test_own_pairs_of_tested_conversations_and_training_pairs_that_nobody_has_are_told(
    command_line: CommandLine, tmp_path: Path
) -> None:
    server = tmp_path / "server"
    server.mkdir()
    for name, numbers in {"a": range(30), "b": range(30, 60), "server/test": range(5, 25)}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(map(question, numbers)))
    for name, numbers in {"train": range(100, 107), "valid": range(28, 32)}.items():
        (server / f"{name}.jsonl").write_text("".join(map(question, numbers)))
    own = ["partition=own", f"client_data=[{tmp_path}/a.jsonl,{tmp_path}/b.jsonl]", "client_num_in_total=2"]
    result = command_line("comm_round=1", "datasets=[files]", f"data_dir={server}", *own)
    assert "warning: the conversations of 24 of the clients' own pairs are also in the test or validation" in result.out
    assert "not used: the 7 training pairs of datasets; clients have files of their own" in result.out


def test_pairs_of_few_conversations_and_a_limit_of_validation_pairs_without_a_share(
    command_line: CommandLine, tmp_path: Path
) -> None:
    for name, numbers in {"train": range(20, 100), "test": range(3), "valid": range(100, 110)}.items():
        lines = (question(number).replace("Human:", f"Human: {number // 20}\\n\\nHuman:") for number in numbers)
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    own = ["datasets=[files]", f"data_dir={tmp_path}", "client_num_in_total=2", "comm_round=1"]
    result = command_line(*own, "server_fraction=0", "n_eval_examples=4")
    assert "server validates on 4, test 3\n" in result.out
    assert "warning: 87 pairs in 6 conversations by their first human turns, and no conversation is" in result.out
