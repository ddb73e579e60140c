"""Settings that come through Flower: every key of the command line, typed as TOML."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.common.config import parse_config_args

from fed.config.checks import Request
from fed.config.flower import OF_THE_MACHINE, from_text, keys, node_settings, run_settings, to_text
from fed.config.schema import Config, ModelSettings

ROOT = Path(__file__).parents[2]
APP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


def typed(*settings: str) -> Request:
    """What `flwr run -c` makes of these texts."""
    return run_settings({**APP["config"], **parse_config_args(list(settings))})


def test_every_key_of_the_command_line_is_there():
    """Print `fed.config.flower.keys()` to see what pyproject.toml must list."""
    assert list(APP["config"]) == keys()
    assert set(APP["config"].values()) == {""}
    assert {"comm_round", "strategy", "strategy.temp", "model.name_or_path", "privacy.delta", "lora.r"} <= set(keys())


def test_nothing_typed_gives_the_defaults():
    settings = typed()
    assert settings.given == frozenset() and settings.config.engine == "flower"
    assert settings.config.client_num_in_total == 10 and settings.config.strategy["temp"] == 0.1


def test_toml_values_become_settings():
    settings = typed(
        'comm_round=3 packing=false lr=1e-3 datasets="[hh,shp]" strategy="fedavg" client_timeout="null"',
        '"lora.r"=2 "strategy.fraction_evaluate"=1.0 "model.name_or_path"="/models/a b"',
    )
    config = settings.config
    assert (config.comm_round, config.packing, config.lr, config.datasets) == (3, False, 1e-3, ["hh", "shp"])
    assert config.strategy["_target_"].endswith("StreamingFedAvg") and config.strategy["fraction_evaluate"] == 1.0
    assert config.client_timeout is None and config.lora.r == 2 and config.model.name_or_path == "/models/a b"
    assert "lora.r" in settings.given and "temp" not in settings.given


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('comm_round="many"', "comm_round=many is of the wrong type"),
        ("comm_round=0", "comm_round=0 is out of range"),
        ('strategy="fedagv"', "strategy=fedagv is unknown"),
        ('strategy="fedavg" temp=1.0', "temp has no effect with strategy=fedavg"),
        ('partition="own"', "accuracy_on=server with partition=own"),
        ('partition="own" accuracy_on="client" privacy="local_dp" "privacy.seeded_noise"=true', "subtracts the noise"),
    ],
)
def test_mistakes_are_told_as_on_the_command_line(text, words):
    with pytest.raises(ValueError, match=words):
        typed(text)


def test_noise_that_leaves_the_machine_is_not_seeded():
    assert typed('privacy="central_dp" temp=0.0').config.privacy.seeded_noise is False


def test_settings_reach_the_clients_as_they_are():
    settings = typed('datasets="[hh]" "lora.r"=2 strategy="fedavg"')
    assert from_text(to_text(settings)) == settings
    with pytest.raises(ValueError, match="both need the same version"):
        from_text(to_text(settings).replace('"comm_round"', '"comm_rounds"'))


def test_a_real_node_does_not_take_over_what_belongs_to_the_servers_machine():
    config = Config(cache_dir="/server", device="cuda:3", num_threads=64, model=ModelSettings(name_or_path="gpt2"))
    settings = Request(config, frozenset())
    node = {"data": "x.jsonl", "num_threads": 2, "model.name_or_path": "/models/gpt2"}
    found, usual = node_settings(settings, node).config, Config()
    assert (found.num_threads, found.model.name_or_path) == (2, "/models/gpt2")
    for key in OF_THE_MACHINE:
        assert getattr(found, key) == getattr(usual, key) != getattr(config, key)
    simulated = node_settings(settings, {"partition-id": 0, "num-partitions": 2}).config
    assert simulated == replace(config)
