"""The command line from end to end: exit codes, messages, and what a run leaves behind."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

import main
from fed.reports.pictures import pictures
from run import experiment
from support.command_line import SMALL, CommandLine, Result, refused
from support.good_inputs import hh_line, save_gpt2

ROOT = Path(main.__file__).parent


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a two-layer GPT-2 and the demo's tokenizer."""
    directory = tmp_path_factory.mktemp("gpt2")
    save_gpt2(directory)
    return directory


@pytest.fixture(scope="session")
def hh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in the layout of Anthropic's data."""
    folder = tmp_path_factory.mktemp("hh")
    for name, numbers in (("train", range(60)), ("test", range(60, 80))):
        (folder / f"{name}.jsonl").write_text("".join(hh_line(number) for number in numbers))
    return folder


def test_the_real_command_exits_with_2_and_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "main.py", "comm_rounds=3", "output_dir=runs"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: unknown key comm_rounds (nearest: comm_round)")
    assert list(tmp_path.iterdir()) == []


def test_multirun_makes_one_folder_per_run_and_leaves_nothing_else(command_line: CommandLine) -> None:
    result = command_line("--multirun", *SMALL[1:], "comm_round=1,2")
    assert result.code == 0, result.err
    assert [path.name for path in result.folder.iterdir()] == ["runs"]
    rounds = [yaml.safe_load((run / "config.yaml").read_text())["comm_round"] for run in result.runs]
    assert sorted(rounds) == [1, 2]
    assert not main.schema.scratch().exists()


def test_the_published_command_runs_as_it_stands(
    command_line: CommandLine, gpt2: Path, hh: Path, tmp_path: Path
) -> None:
    """The command is the published one but for the directory, the data, and fewer rounds and clients."""
    archive = tmp_path / "policy.pt"
    torch.save({"state": GPT2LMHeadModel.from_pretrained(gpt2).state_dict(), "step_idx": 1}, archive)
    result = command_line(
        *f"model=blank_model model.name_or_path={gpt2} model.block_name=GPT2Block datasets=[hh] loss=dpo loss.beta=0.1 "
        "temp=0.1 decay_rate=0.995 exp_name=published gradient_accumulation_steps=2 batch_size=64 eval_batch_size=32 "
        f"trainer=FSDPTrainer model.fsdp_policy_mp=bfloat16 model.archive={archive} eval_every=6000 "
        "client_num_in_total=3 comm_round=2 frequency_of_test=1".split(),
        f"data_dir={hh}",
    )
    assert result.run.parent.name == "published"
    # Untrained weights tie with themselves exactly, in bfloat16 too.
    assert [line["ties"] for line in result.lines()[:2]] == [1.0, 1.0]
    assert "not split" in result.out


IDEAS = """
from flwr.serverapp.strategy import FedAvg


class MyStrategy(FedAvg):
    def __init__(self, note: str = "", **fedavg):
        super().__init__(**fedavg)
        open("strategy-was-here", "w").close()


def hinge(policy, reference, *, delta: float):
    return (delta - (policy.chosen - policy.rejected)).clamp(min=0)


def scalar(policy, reference):
    return policy.chosen.mean()
"""


@pytest.fixture
def ideas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Write a module of the user's, importable as one in the working folder is."""
    (tmp_path / "my_ideas.py").write_text(IDEAS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("my_ideas", None)


@pytest.mark.usefixtures("ideas")
def test_a_users_strategy_and_loss_need_no_registration(command_line: CommandLine) -> None:
    result = command_line(
        *SMALL, "strategy._target_=my_ideas.MyStrategy", "loss._target_=my_ideas.hinge", "+loss.delta=2"
    )
    assert result.run and (result.folder / "strategy-was-here").exists()
    # The mean of max(0, 2 - margin) is no less than that of the mean margin, and not DPO's log 2.
    first = result.lines(split="test")[0]
    assert first["loss"] >= 2 - first["logps_chosen"] + first["logps_rejected"]
    assert first["loss"] > 1


@pytest.mark.usefixtures("ideas")
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("strategy._target_=my_ideas.MyStrategy temp=1", "strategy.temp MyStrategy note"),
        ("strategy._target_=my_ideas.MyStrategy strategy.decay=constant", "strategy.decay MyStrategy"),
        ("loss._target_=my_ideas.hinge", "hinge delta"),
        ("loss._target_=my_ideas.hinge +loss.delta=2 loss.label_smoothing=0.1", "loss.label_smoothing hinge"),
        ("loss._target_=my_ideas.scalar", "scalar shape (5,)"),
    ],
)
def test_a_typed_value_that_a_users_component_does_not_take_is_refused(
    command_line: CommandLine, typed: str, words: str
) -> None:
    refused(command_line(*SMALL, *typed.split()), *words.split())


def test_a_module_in_the_working_folder_is_found_by_the_real_command(tmp_path: Path) -> None:
    assert os.getcwd() in sys.path or str(ROOT) in sys.path
    (tmp_path / "my_ideas.py").write_text(IDEAS)
    code = "import main; from fed.config.components import imported; imported('loss._target_', 'my_ideas.hinge')"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, env=env, check=True, timeout=60)


def test_a_run_leaves_the_files_of_the_contract(command_line: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "pictures", pictures)  # other tests go without: drawing takes longer than training
    result = command_line(*SMALL, "comm_round=2", "client_num_in_total=3")
    names = {"config.yaml", "environment.json", "partition.json", "metrics.jsonl", "summary.json", "curves.png"}
    names |= {"margins.jsonl", "timing.jsonl", "partition.png"}
    assert {path.name for path in result.run.iterdir()} == names | {"tensorboard", "policy", "checkpoints"}
    assert {path.name for path in (result.run / "tensorboard").iterdir()} == {
        "Server",
        *map("Client-{}".format, range(3)),
    }
    assert [path.name for path in (result.run / "checkpoints").iterdir()] == ["best", "round-1", "round-2"]
    assert [path.name for path in result.folder.iterdir()] == ["runs"]
    assert result.run.parent.name == "fedpo"
    assert result.err == ""

    for split in ("validation", "test"):
        lines = result.lines(split=split)
        assert [line["round"] for line in lines] == [0, 1, 2]
        assert lines[0]["pairs"] == 0 and lines[0]["accuracy"] == 0 and lines[0]["ties"] == 1
        assert all(isinstance(line["margin"], float) and line["accuracy_low"] < line["accuracy_high"] for line in lines)
    assert [line["round"] for line in result.lines("client-2", "train")] == [1, 2]
    assert sum(line["weight"] for k in range(3) for line in result.lines(f"client-{k}", "aggregate")) == pytest.approx(
        2
    )

    settings = yaml.safe_load((result.run / "config.yaml").read_text())
    assert settings["strategy"]["temp"] == settings["temp"] == 0.1
    assert "${" not in (result.run / "config.yaml").read_text()
    environment = json.loads((result.run / "environment.json").read_text())
    assert environment["argv"][0] == "main.py" and "comm_round=2" in environment["argv"]
    assert {"started", "commit", "python", "platform", "device", "threads"} <= environment.keys()
    assert environment["packages"]["torch"] == torch.__version__
    parts = json.loads((result.run / "partition.json").read_text())
    assert parts["cover"] and parts["disjoint"] and parts["num_clients"] == 3
    summary = json.loads((result.run / "summary.json").read_text())
    assert summary["final"]["test"]["accuracy"] == result.lines(split="test")[-1]["accuracy"]

    model = AutoModelForCausalLM.from_pretrained(result.run / "policy")
    tokenizer = AutoTokenizer.from_pretrained(result.run / "policy")
    assert model.config.vocab_size == len(tokenizer) and tokenizer.eos_token_id is not None


def test_sparse_evaluation_sampled_clients_and_no_model(command_line: CommandLine) -> None:
    result = command_line(
        *SMALL,
        *["comm_round=3", "frequency_of_test=2", "client_num_in_total=4", "clients_per_round=2"],
        *["debug=true", "tensorboard.enabled=false"],
    )
    assert [line["round"] for line in result.lines(split="test")] == [0, 2, 3]
    assert [line["round"] for line in result.lines(split="validation")] == [0, 2, 3]
    trained = [line["round"] for client in range(4) for line in result.lines(f"client-{client}", "train")]
    assert sorted(trained) == [1, 1, 2, 2, 3, 3]
    assert not (result.run / "policy").exists()
    assert not list(result.run.rglob("events.out*"))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(command_line: CommandLine) -> None:
    def weights(result: Result) -> bytes:
        return (result.run / "policy" / "model.safetensors").read_bytes()

    first, again, other = (command_line(*SMALL, f"seed={seed}") for seed in (3, 3, 4))
    assert weights(first) == weights(again) != weights(other)
    metrics = [(result.run / "metrics.jsonl").read_text() for result in (first, again, other)]
    assert metrics[0] == metrics[1] != metrics[2]


def test_centralized_training_is_one_client_with_all_pairs(command_line: CommandLine) -> None:
    result = command_line(*SMALL, "mode=centralized", "client_num_in_total=4")
    assert [path.name for path in (result.run / "tensorboard").iterdir() if path.name != "Server"] == ["Client-0"]
    parts = json.loads((result.run / "partition.json").read_text())
    assert result.lines("client-0", "train") and not result.lines("client-1")
    # All pairs but the one or two that each of the four clients would have held out.
    assert parts["num_rows"] - 8 <= result.lines(split="test")[-1]["pairs"] <= parts["num_rows"] - 4
    assert (result.run / "policy" / "config.json").exists()


def test_local_training_saves_a_model_per_client(command_line: CommandLine) -> None:
    result = command_line(*SMALL, "mode=local")
    assert sorted(path.name for path in (result.run / "policy").iterdir()) == ["client-0", "client-1"]
    assert not result.lines("server")
    for client in ("client-0", "client-1"):
        assert [line["round"] for line in result.lines(client, "test")] == [0, 1]
    one, other = ((result.run / f"policy/client-{k}/model.safetensors").read_bytes() for k in (0, 1))
    assert one != other


def test_a_small_dataset_is_a_tenth(command_line: CommandLine, hh: Path) -> None:
    """Six of 60 training pairs are left; the server holds one of them."""
    result = command_line(
        "comm_round=1",
        "client_num_in_total=2",
        "datasets=[hh]",
        f"data_dir={hh}",
        "use_small_dataset=true",
        "debug=true",
    )
    validation = result.lines(split="validation")[0]["examples"]
    assert json.loads((result.run / "partition.json").read_text())["num_rows"] + validation == 6


def test_supervised_training_runs(command_line: CommandLine) -> None:
    result = command_line(*SMALL, "loss=sft", "strategy=fedavg", "debug=true")
    losses = [line["loss"] for line in result.lines(split="test")]
    assert losses[1] < losses[0]
