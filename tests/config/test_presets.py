"""The presets of config/experiment/: what they promise, what may be typed beside them, and that each one runs."""

import functools
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

import main
from fed.config import components, schema
from fed.config.checks import Request, checked
from fed.data.divide import partition
from fed.model.demo import demo_model, demo_tokenizer
from load_data import load
from run.data import reading_of, shared_out
from support.command_line import CommandLine, Result, refused
from support.good_inputs import hh_line, save_gpt2

CONFIG = Path(__file__).parents[2] / "config"
PRESETS = sorted(path.stem for path in (CONFIG / "experiment").glob("*.yaml"))
HH = Path(__file__).parents[3] / "shared" / "data" / "hh"

SMOLLM2 = {
    "model": {"name_or_path": "HuggingFaceTB/SmolLM2-135M-Instruct", "block_name": "LlamaDecoderLayer"},
    "loss": {"_target_": "losses.preference.dpo", "beta": 0.1},
    "strategy": {"_target_": "server.strategies.FeDPO"},
    **{"client_num_in_total": 4, "comm_round": 3, "local_steps": 3, "batch_size": 16},
    **{"optimizer": "AdamW", "lr": 5e-5, "warmup_steps": 2, "alpha": 0, "client_eval_fraction": 0, "precision": None},
}
DIRICHLET = {
    "model": {"name_or_path": "demo"},
    "datasets": ["demo"],
    "partition": {"_target_": "flwr_datasets.partitioner.DirichletPartitioner", "alpha": 0.3},
    "client_num_in_total": 10,
}
LABELS = {
    "model": {"name_or_path": "gpt2", "policy_dtype": "float32"},
    "loss": {"_target_": "losses.preference.dpo", "beta": 0.1, "label_smoothing": 0.0},
    **{"mode": "centralized", "client_num_in_total": 1, "comm_round": 1, "local_epochs": 1, "trainer": "FSDPTrainer"},
    **{"optimizer": "Adam", "warmup_steps": 0, "max_grad_norm": 1e9, "alpha": 0},
    **{"sample_during_eval": True, "sample_fixed_length": True},
}
PROMISED: dict[str, dict[str, Any]] = {
    "fedpo_hh_gpt2": {
        "model": {"name_or_path": "gpt2-large", "block_name": "GPT2Block", "fsdp_policy_mp": "bfloat16"},
        "datasets": ["hh"],
        "loss": {"_target_": "losses.preference.dpo", "beta": 0.1},
        "strategy": {"_target_": "server.strategies.FeDPO", "temp": 0.1, "decay_rate": 0.995, "decay": "constant"},
        "partition": {"_target_": "fed.data.partition.ContiguousPartitioner", "even": True},
        **{"client_num_in_total": 10, "comm_round": 100, "frequency_of_test": 1, "eval_every": 6000},
        **{"batch_size": 64, "gradient_accumulation_steps": 2, "eval_batch_size": 32, "trainer": "FSDPTrainer"},
        **{"accuracy_on": "test", "decay_target": "loss", "anchor_norm": "sum", "server_fraction": 0.2},
        **{"n_test_examples": 256, "lr": 5e-7, "optimizer": "RMSprop", "warmup_steps": 150, "alpha": 1},
    },
    "fedpo_hh_smollm2": {**SMOLLM2, "datasets": ["hh"]},
    "harmless_vs_helpful": {
        **SMOLLM2,
        "datasets": ["hh_base"],
        "partition": {"_target_": "fed.data.partition.GroupPartitioner", "partition_by": "group"},
    },
    "noniid_dirichlet": DIRICHLET,
    "sentiment_gpt2": {
        **LABELS,
        **{"datasets": ["sentiment"], "max_length": 64 + 24, "max_prompt_length": 64, "batch_size": 64, "lr": 5e-5},
        "sample_temperature": 0.7,
    },
    "temp_sweep": DIRICHLET,
    "tldr60k_gpt2": {
        **LABELS,
        **{"datasets": ["tldr60k"], "max_length": 500 + 75, "max_prompt_length": 500, "batch_size": 32, "lr": 2.5e-5},
    },
}


@functools.cache
def composed(*typed: str) -> DictConfig:
    schema.register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIG), version_base=None):
        found = compose("config", list(typed), return_hydra_config=True)
    GlobalHydra.instance().clear()
    return found


def settings_of(*typed: str) -> Request:
    found = composed(*typed).copy()
    choices = dict(found.hydra.runtime.choices)
    OmegaConf.set_struct(found, False)
    del found["hydra"]
    return checked(found, typed, choices)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_the_values_it_promises(name: str) -> None:
    request = settings_of(f"experiment={name}")
    assert request.given == {"experiment"}
    assert request.config.exp_name == name
    for key, value in PROMISED[name].items():
        found = getattr(request.config, key)
        if isinstance(value, Mapping):
            found = {part: (found if isinstance(found, Mapping) else vars(found))[part] for part in value}
        assert found == value, key


def test_the_sweep_is_over_five_temperatures_and_three_seeds() -> None:
    hydra = composed("experiment=temp_sweep").hydra
    assert hydra.mode.name == "MULTIRUN"
    assert hydra.sweeper.params == {"temp": "0,0.1,1,10,100", "seed": "0,1,2"}


def test_what_is_typed_wins_over_the_preset() -> None:
    found = settings_of("experiment=fedpo_hh_gpt2", "comm_round=2", "loss=ipo", "model=gpt2", "exp_name=mine").config
    assert (found.comm_round, found.loss["_target_"], found.exp_name) == (2, "losses.preference.ipo", "mine")
    assert (found.model.name_or_path, found.batch_size) == ("gpt2", 64)
    assert settings_of("experiment=fedpo_hh_gpt2", "precision=float32", "model.fsdp_policy_mp=null").given


@pytest.mark.parametrize(
    ("name", "typed", "reason"),
    [
        ("fedpo_hh_gpt2", "eval_every=100", "client_eval_fraction=0"),  # the preset gives it too, as published
        ("fedpo_hh_gpt2 strategy=fedavg", "temp=1", "strategy=fedavg"),
        ("fedpo_hh_smollm2", "do_first_eval=true", "client_eval_fraction=0"),
        ("fedpo_hh_smollm2", "anchor_norm=sum", "alpha=0"),
        ("harmless_vs_helpful", "data_evenly_distributed=false", "partition=group"),
        ("noniid_dirichlet", "data_dir=x", r"datasets=\[demo\]"),
        ("noniid_dirichlet mode=centralized", "temp=1", "mode=centralized"),
    ],
)
def test_a_typed_key_without_effect_is_refused_beside_a_preset_too(name: str, typed: str, reason: str) -> None:
    key = typed.split("=")[0]
    with pytest.raises(ValueError, match=f"^{key} has no effect with {reason}.*; leave it out$"):
        settings_of(*f"experiment={name}".split(), typed)


@pytest.mark.parametrize("name", [name for name in PRESETS if name != "temp_sweep"])  # what that sweeps counts as typed
@pytest.mark.parametrize("typed", ["strategy=fedavg", "mode=centralized", "mode=local", "partition=iid", "loss=ipo"])
def test_a_presets_keys_are_not_taken_for_typed_ones(name: str, typed: str) -> None:
    if typed.startswith("strategy") and PROMISED[name].get("mode") == "centralized":
        with pytest.raises(ValueError, match=r"^strategy has no effect with mode=centralized"):
            settings_of(f"experiment={name}", typed)
        return
    assert settings_of(f"experiment={name}", typed).given == {"experiment", typed.split("=")[0]}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("experiment=temp_sweeps", f"experiment=temp_sweeps unknown {' '.join(PRESETS)} nearest: temp_sweep"),
        ("+experiment=temp_sweep", "experiment twice"),
        ("--experiment=temp_sweep", "dashes experiment=temp_sweep"),
        ("experiment=[temp_sweep]", "experiment=[temp_sweep] one file config/experiment/"),
        ("experiment=null", "experiment=null one file"),
        ("experimnt=temp_sweep", "experimnt nearest: experiment"),
        ("experiment=temp_sweep comm_rounds=1", "comm_rounds nearest: comm_round"),
        ("experiment=temp_sweep strategy=fedavg", "temp strategy=fedavg"),
        ("experiment=noniid_dirichlet temp=0,1", "temp=0,1 --multirun"),
    ],
)
def test_mistakes_with_presets_are_one_line(command_line: CommandLine, typed: str, words: str) -> None:
    refused(command_line(*typed.split()), *words.split())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_demos_topics_divide_among_ten_clients_by_each_seed_of_the_sweep(seed: int) -> None:
    request = settings_of("experiment=noniid_dirichlet", f"seed={seed}")
    rows = load(["demo"], "train", data_dir=None, seed=seed).rows
    divide = components.create("partition", request.config.partition, request.given)
    parts = partition(rows, divide, 10, seed)
    largest = [max(Counter(rows[index].group for index in part).values()) / len(part) for part in parts]
    assert sum(share > 0.4 for share in largest) >= 5  # of six topics an even client has each to a sixth


@pytest.mark.skipif(not HH.is_dir(), reason="../shared/data/hh is not on this machine")
@pytest.mark.parametrize("seed", range(3))
def test_real_pairs_are_harmless_at_two_clients_and_helpful_at_two(seed: int) -> None:
    request = settings_of("experiment=harmless_vs_helpful", f"data_dir={HH}", f"seed={seed}")
    split = shared_out(request.config, request.given, reading_of(request.config, supervised=False)).split
    groups = [{row.group for row in client.train} for client in split.clients]
    assert sorted(map(sorted, groups)) == [["harmless-base"]] * 2 + [["helpful-base"]] * 2
    assert min(len(client.train) for client in split.clients) > 100


# Runs


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a tiny Llama, which is SmolLM2's family too."""
    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    demo_model(demo_tokenizer()).save_pretrained(directory)
    demo_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def hh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of files named as Anthropic's, one of them of a part that is no base."""
    folder = tmp_path_factory.mktemp("hh")
    for number, part in enumerate(("harmless-base", "helpful-base", "helpful-online")):
        for split, start, count in (("train", 0, 40), ("test", 50, 10)):
            lines = [hh_line(1000 * number + start + k) for k in range(count)]
            (folder / f"{part}-{split}.jsonl").write_text("".join(lines))
    return folder


def groups(run: Path) -> list[dict[str, int]]:
    return [client["groups"] for client in json.loads((run / "partition.json").read_text())["clients"]]


def test_fedpo_hh_gpt2_runs(command_line: CommandLine, tmp_path: Path, hh: Path) -> None:
    """The server has a fifth of the 120 training pairs; the others are three blocks of 32 in data order."""
    save_gpt2(tmp_path / "gpt2")
    result = command_line(
        *["experiment=fedpo_hh_gpt2", f"model.name_or_path={tmp_path / 'gpt2'}", f"data_dir={hh}"],
        *["client_num_in_total=3", "comm_round=2"],
    )
    assert result.run.parent.name == "fedpo_hh_gpt2"
    assert [sum(client.values()) for client in groups(result.run)] == [32, 32, 32]
    assert list(groups(result.run)[0]) == ["harmless-base"]  # contiguous
    assert "warning: accuracy_on=test" in result.out and "computing in bfloat16" in result.out
    assert [line["round"] for line in result.lines(split="test")] == [0, 1, 2]


def test_fedpo_hh_smollm2_runs(command_line: CommandLine, llama: Path, hh: Path) -> None:
    result = command_line(
        *["experiment=fedpo_hh_smollm2", f"model.name_or_path={llama}", f"data_dir={hh}"],
        *["comm_round=2", "local_steps=1", "num_threads=1"],
    )
    assert [sum(client.values()) for client in groups(result.run)] == [27, 27, 27, 27]  # of 120, 12 the server's
    assert {group for client in groups(result.run) for group in client} > {"helpful-online"}
    assert result.lines(split="test")[-1]["pairs"] == 4 * 2 * 16 - 4 * 5  # the second batch of 27 pairs holds 11


def test_harmless_vs_helpful_runs(command_line: CommandLine, llama: Path, hh: Path) -> None:
    result = command_line(
        *["experiment=harmless_vs_helpful", f"model.name_or_path={llama}", f"data_dir={hh}"],
        *["comm_round=1", "local_steps=1", "num_threads=1"],
    )
    assert result.run.parent.name == "harmless_vs_helpful"
    assert Counter(tuple(client) for client in groups(result.run)) == {("harmless-base",): 2, ("helpful-base",): 2}


SMALL = ("comm_round=1", "client_num_in_total=3", "n_train_examples=90", "n_test_examples=16")


def test_noniid_dirichlet_runs(command_line: CommandLine) -> None:
    result = command_line("experiment=noniid_dirichlet", *SMALL)
    assert len(groups(result.run)) == 3
    sizes = [sum(client.values()) for client in groups(result.run)]
    assert max(sizes) > 2 * min(sizes)  # a Dirichlet's shares differ in size too


def test_another_file_of_a_group_takes_none_of_the_presets_values(command_line: CommandLine) -> None:
    """The parameter partition.alpha=0.3 is dirichlet's, and the preset's."""
    result = command_line("experiment=noniid_dirichlet", "partition=iid", *SMALL)
    sizes = [sum(client.values()) for client in groups(result.run)]
    assert max(sizes) - min(sizes) <= 1
    refused(command_line("experiment=noniid_dirichlet", "partition=iid", "+partition.alpha=1"), "partition.alpha")


def kept(result: Result) -> list[tuple[float, int, int]]:
    found = [yaml.safe_load((run / "config.yaml").read_text()) for run in result.runs]
    return [(one["strategy"]["temp"], one["seed"], one["comm_round"]) for one in found]


def test_temp_sweep_runs_without_a_flag_and_what_is_typed_narrows_it(command_line: CommandLine) -> None:
    result = command_line("experiment=temp_sweep", "temp=0,10", "seed=1", *SMALL)
    assert result.code == 0, result.err
    assert kept(result) == [(0, 1, 1), (10, 1, 1)]
    assert [path.name for path in (result.folder / "runs").iterdir()] == ["temp_sweep"]


def test_the_processes_of_one_of_its_runs_do_not_sweep(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(main.launch, "launch", lambda processes, command: commands.append(command[1:]) or 0)
    result = command_line("experiment=temp_sweep", "seed=0", "temp=1,2", "clients_in_parallel=2", "num_threads=1")
    assert result.code == 0, result.err
    assert [sorted(word for word in command if word.startswith("temp=")) for command in commands] == [
        ["temp=1"],
        ["temp=2"],
    ]
    for command in commands:
        assert composed(*command).hydra.mode.name == "RUN"
