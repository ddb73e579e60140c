"""Settings that come through Flower: those of the command line, in one text."""

import shlex
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from fed.config.checks import Request
from fed.config.flower import from_text, node_settings, run_settings, to_text
from fed.config.groups import ModelSettings
from fed.config.schema import Config
from fed.config.scopes import decided_by
from fed.errors import Refused

ROOT = Path(__file__).parents[2]
APP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


def typed(settings: str) -> Request:
    """Return what `flwr run -c 'settings="..."'` makes of these settings."""
    return run_settings({**APP["config"], **parse_config_args([f'settings="{settings}"'])})


def test_flower_knows_one_key() -> None:
    assert APP["config"] == {"settings": ""}


def test_nothing_typed_gives_the_defaults() -> None:
    request = run_settings(APP["config"])
    assert request.given == frozenset() and request.config.engine == "flower"
    assert request.config.client_num_in_total == 10 and request.config.strategy["temp"] == 0.1


def test_settings_are_typed_as_on_the_command_line() -> None:
    request = typed(
        "comm_round=3 packing=false lr=1e-3 datasets=[hh,shp] strategy=fedavg client_timeout=null "
        "lora.r=2 strategy.fraction_evaluate=1.0 'model.name_or_path=/models/a b'"
    )
    config = request.config
    assert (config.comm_round, config.packing, config.lr, config.datasets) == (3, False, 1e-3, ["hh", "shp"])
    assert config.strategy["_target_"].endswith("StreamingFedAvg") and config.strategy["fraction_evaluate"] == 1.0
    assert config.client_timeout is None and config.lora.r == 2 and config.model.name_or_path == "/models/a b"
    assert "lora.r" in request.given and "temp" not in request.given


def test_a_shells_quotes_are_undone() -> None:
    arguments = ["exp_name=a b", "datasets=[hh, shp]", 'output_dir="x=y"']
    config = run_settings({"settings": shlex.join(arguments)}).config
    assert (config.exp_name, config.datasets, config.output_dir) == ("a b", ["hh", "shp"], "x=y")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("comm_round=many", "comm_round=many is of the wrong type"),
        ("comm_round=0", "comm_round=0 is out of range"),
        ("comm_rounds=1", "unknown key comm_rounds"),
        ("comm_round", "'comm_round' is not a setting; expected key=value"),
        ("comm_round = 3", "is not a setting; expected key=value"),
        ("--multirun temp=1", "'--multirun' is not a setting"),
        ("temp=1,2", "temp=1,2 has several values"),
        ("experiment=temp_sweep", "experiment= names a sweep"),
        ("exp_name='a", "settings=.* cannot be read: no closing quotation; expected KEY=VALUE"),
        ("strategy=fedagv", "strategy=fedagv is unknown"),
        ("strategy=fedavg temp=1.0", "temp has no effect with strategy=fedavg"),
        ("partition=own", "accuracy_on=server with partition=own"),
        ("partition=own accuracy_on=client privacy=local_dp privacy.seeded_noise=true", "subtracts the noise"),
        ("engine=ray", "engine=flower is what `flwr run` starts"),
        ("mode=local", "mode=local needs engine=local"),
        ("trainer=FSDPTrainer", "trainer has no effect with engine=flower"),
        ("trainer_processes=2", "trains each client in one process"),
        ("clients_in_parallel=2", "clients_in_parallel has no effect with engine=flower"),
        ("cpu_offload=true", "cpu_offload has no effect"),
        ("faults.nan_rate=0.1", "faults.nan_rate has no effect"),
        ("partition=own accuracy_on=client client_data=[a.jsonl]", "each SuperNode names its own file"),
        ("partition=own accuracy_on=client partition.client_data=[a.jsonl]", "each SuperNode names its own file"),
    ],
)
def test_mistakes_are_told_in_one_line_as_on_the_command_line(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refusal:
        typed(text)
    assert "\n" not in str(refusal.value)


def test_noise_that_leaves_the_machine_is_not_seeded() -> None:
    assert typed("privacy=central_dp temp=0.0").config.privacy.seeded_noise is False


def test_settings_reach_the_clients_as_they_are() -> None:
    request = typed("datasets=[hh] lora.r=2 strategy=fedavg")
    assert from_text(to_text(request)) == request
    with pytest.raises(Refused, match="both need the same version"):
        from_text(to_text(request).replace('"comm_round"', '"comm_rounds"'))


def test_a_real_node_does_not_take_over_what_belongs_to_the_servers_machine() -> None:
    config = Config(cache_dir="/server", device="cuda:3", num_threads=64, model=ModelSettings(name_or_path="gpt2"))
    request = Request(config, frozenset())
    node = {"data": "x.jsonl", "num_threads": 2, "model.name_or_path": "/models/gpt2"}
    found, usual = node_settings(request, node).config, Config()
    assert (found.num_threads, found.model.name_or_path) == (2, "/models/gpt2")
    assert set(decided_by("machine")) == {"cache_dir", "device"}
    for key in decided_by("machine"):
        assert getattr(found, key) == getattr(usual, key) != getattr(config, key)
    simulated = node_settings(request, {"partition-id": 0, "num-partitions": 2}).config
    assert simulated == replace(config)
