"""Settings of a run that Flower started, from `flwr run -c`; of its clients, from the server and `--node-config`."""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fed.config import schema as config_schema
from fed.config.arguments import check_arguments
from fed.config.checks import Request, checked
from fed.config.explain import explain, group_keys, listed, nearest

CONFIG_DIR = Path(__file__).parents[2] / "config"
# Keys that make no sense where Flower starts the run.
NOT_HERE = (
    "engine",
    "mode",
    "client_data",
    "trainer",
    "trainer_processes",
    "clients_in_parallel",
    "cpu_offload",
    "faults",
)
WHOLE = {"lora", "tensorboard", "strategy.strategy", "partition.client_data"}  # given key by key, or not at all
OF_THE_MACHINE = ("cache_dir", "device")  # what the server's machine has says nothing of a node's
# What a node decides for itself.
OF_THE_NODE = (
    *(*OF_THE_MACHINE, "num_threads", "cpu_matmul", "keep_freed_memory", "eval_batch_size"),
    *("model.name_or_path", "model.tokenizer_name_or_path", "model.gguf_file", "model.archive"),
)
PARTITION_ID = "partition-id"  # Flower's own number of a node
DATA, FORMAT = "data", "dataset"  # a node's file of pairs, and the data set whose format it has
INSISTED = KIND, LEAST = "privacy.kind", "privacy.noise_multiplier"  # what a node's owner demands of a run
FLOWERS_OWN = (PARTITION_ID, "num-partitions")


def keys() -> list[str]:
    """All keys of `[tool.flwr.app.config]`."""
    every = {*config_schema.GROUPS, config_schema.PRESETS, *config_schema.keys(), *group_keys()}
    return sorted(key for key in every - WHOLE if key.split(".")[0] not in NOT_HERE)


def run_settings(run_config: Mapping[str, Any]) -> Request:
    """The settings of a run that Flower started; keys whose value is "" were not given.

    Raises:
        ValueError: As the command line's checks do.
    """
    overrides = [f"{key}={_text(value)}" for key, value in run_config.items() if value != ""]
    check_arguments(overrides)
    config_schema.register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            composed = compose("config", overrides, return_hydra_config=True)
        choices = dict(composed.hydra.runtime.choices)
        with open_dict(composed):
            del composed["hydra"]
            composed.engine, composed.trainer = "flower", "BasicTrainer"  # whatever a preset says
        return checked(composed, overrides, choices)
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(f"{error}\n{error.__cause__ or ''}")) from error


def to_text(settings: Request) -> str:
    """Settings as the server sends them to clients."""
    return json.dumps({"config": asdict(settings.config), "given": sorted(settings.given)})


@functools.lru_cache(1)  # a worker of Ray gets the same with every message
def from_text(text: str) -> Request:
    """What `to_text` was given.

    Raises:
        ValueError: If this program has other keys than the server's.
    """
    try:
        told = json.loads(text)
        config = OmegaConf.merge(OmegaConf.structured(config_schema.Config), told["config"])
        return Request(OmegaConf.to_object(config), frozenset(told["given"]))  # type: ignore[arg-type]
    except (ValueError, KeyError, TypeError, OmegaConfBaseException) as error:
        raise ValueError(f"the server's settings cannot be read here: {error}; both need the same version") from error


def node_settings(settings: Request, node_config: Mapping[str, Any]) -> Request:
    """The run's settings with those that the node decides for itself; a real one does not take over the server's.

    Raises:
        ValueError: If it names a key that is not for a node to decide, or a value of the wrong type.
    """
    own = {key: value for key, value in node_config.items() if key not in (DATA, FORMAT, *INSISTED, *FLOWERS_OWN)}
    for key in own:
        if key not in OF_THE_NODE:
            known = (DATA, FORMAT, *OF_THE_NODE, *INSISTED)
            raise ValueError(
                f"--node-config has {key}; a node decides {listed(known)}{nearest(key, known)}, the run all else"
            )
    if not own and DATA not in node_config:
        return settings
    config = settings.config
    if DATA in node_config:
        usual = config_schema.Config()
        config = replace(config, **{key: getattr(usual, key) for key in OF_THE_MACHINE})
    merged = OmegaConf.structured(config)
    try:
        for key, value in own.items():
            OmegaConf.update(merged, key, None if value == "null" else value)
    except OmegaConfBaseException as error:
        raise ValueError(f"--node-config: {explain(str(error))}") from error
    return replace(settings, config=OmegaConf.to_object(merged))  # type: ignore[arg-type]


def _text(value: Any) -> str:
    """As it is typed on the command line; TOML has texts, numbers, true and false, so lists and null come as texts."""
    return str(value).lower() if isinstance(value, bool) else str(value)
