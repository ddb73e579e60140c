"""Checks of the composed configuration: values that cannot work, alone or together, are refused."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fed.config.effect import check_effect, check_read, passed_on
from fed.config.explain import REFUSED, listed, nearest, unknown
from fed.config.schema import (
    Config,
    FaultSettings,
    LoraSettings,
    ModelSettings,
    PrivacySettings,
    TensorBoardSettings,
    is_own,
)

CHOICES = {
    "engine": ("local", "ray", "flower"),
    "mode": ("federated", "centralized", "local"),
    "decay_target": ("lr", "loss"),
    "weighting": ("accuracy", "samples", "accuracy_times_samples"),
    "accuracy_on": ("server", "client", "test"),
    "anchor_norm": ("token", "sum"),
    "client_optimizer": ("reset", "persist"),
    "optimizer": ("RMSprop", "AdamW", "Adam", "SGD"),
    "cpu_matmul": ("auto", "mkl", "onednn"),
    "trainer": ("BasicTrainer", "FSDPTrainer", "TensorParallelTrainer"),
    "precision": ("float32", "bfloat16"),
    "wire_dtype": ("float32", "bfloat16"),
}
AT_LEAST_ONE = (
    "checkpoint_keep",
    "client_num_in_total",
    "clients_per_round",
    "comm_round",
    "frequency_of_test",
    "batch_size",
    "max_tokens_per_step",
    "eval_batch_size",
    "gradient_accumulation_steps",
    "local_epochs",
    "local_steps",
    "n_train_examples",
    "n_eval_examples",
    "n_test_examples",
    "max_prompt_length",
    "eval_every",
    "num_threads",
    "trainer_processes",
    "clients_in_parallel",
    "n_eval_model_samples",
)
AT_LEAST_ZERO = (
    "seed",
    "checkpoint_every",
    "min_fit_clients",
    "alpha",
    "warmup_steps",
    "server_fraction",
    "client_eval_fraction",
)
POSITIVE = ("lr", "max_grad_norm", "decay_rate", "process_timeout")

PRIVACY_CHOICES = {"kind": ("none", "central_dp", "local_dp"), "clipping": ("server", "client")}
MOST_THREADS = 1024  # asked for many more, the library that runs them ends the process without a word
# Flower's wrappers that leave the clipping, and so the privacy, to a mod of the clients.
CLIPPING_MODS = {
    "DifferentialPrivacyClientSideFixedClipping": "flwr.clientapp.mod.fixedclipping_mod",
    "DifferentialPrivacyClientSideAdaptiveClipping": "flwr.clientapp.mod.adaptiveclipping_mod",
}


@dataclass(frozen=True)
class Request:
    """A checked configuration and what was typed to get it."""

    config: Config
    given: frozenset[str]  # keys typed on the command line


def checked(composed: DictConfig, overrides: Sequence[str], choices: Mapping[str, str | None]) -> Request:
    """The composed configuration as plain values, with what `mode` implies.

    Args:
        composed: Unresolved, as Hydra gives it.
        overrides: What was typed, e.g. ["temp=1", "strategy=fedavg"].
        choices: The file chosen for each group.

    Raises:
        ValueError: Naming the value, what was expected, and the way out.
    """
    given = frozenset(re.split("[=@]", override.lstrip("+~"), maxsplit=1)[0] for override in overrides)
    _check_known(composed)
    config: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
    _check_values(config)
    _check_loss(config.loss)
    _check_lora(config.lora)
    _check_faults(config)
    _check_engine(config)
    _check_together(config)
    _check_strategy(config)
    if config.alpha is None:
        is_fedpo = config.mode == "federated" and config.strategy["_target_"] == "server.strategies.FeDPO"
        config = replace(config, alpha=1.0 if is_fedpo else 0.0)
    if config.engine == "flower" and "privacy.seeded_noise" not in given:
        config = replace(config, privacy=replace(config.privacy, seeded_noise=False))
    _check_privacy(config)
    check_effect(config, given)
    unresolved = {group: OmegaConf.to_container(composed[group]) for group in ("strategy", "partition")}
    check_read(given, unresolved, choices)
    settings = config if config.mode == "federated" else _without_federation(config, given)
    return Request(settings, given | passed_on(given, unresolved))


def _without_federation(config: Config, given: frozenset[str]) -> Config:
    """Plain DPO, one client at a time: no weights, no decay, an optimizer that is never reset."""
    one_client = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0}
    return replace(
        config,
        strategy={"_target_": "server.strategies.StreamingFedAvg", **one_client},
        privacy=PrivacySettings(),
        client_optimizer=config.client_optimizer if "client_optimizer" in given else "persist",
    )


def _check_values(config: Config) -> None:
    for key, choices in CHOICES.items():
        value = getattr(config, key)
        if value is not None and value not in choices:
            refused = REFUSED.get(f"{key}={value}")
            raise ValueError(
                f"{key}={value} is refused: {refused}"
                if refused
                else f"{key}={value} is unknown; expected {listed(choices)}{nearest(str(value), choices)}"
            )
    name = config.exp_name
    if not re.fullmatch(r"[^/\\\x00-\x1f\x7f]+", name) or name.strip(". ") == "" or len(name.encode()) > 255:
        raise ValueError(f"exp_name={name:.80} names no folder; expected a short name without slashes, e.g. exp_name=a")
    for item in fields(config):
        value = getattr(config, item.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{item.name}={value} is out of range; expected a finite number")
    for names, bound, text in ((AT_LEAST_ONE, 1, "at least 1"), (AT_LEAST_ZERO, 0, "at least 0")):
        for key in names:
            value = getattr(config, key)
            if value is not None and not value >= bound:
                raise ValueError(f"{key}={value} is out of range; expected {text}")
    for key in POSITIVE:
        if not getattr(config, key) > 0:
            raise ValueError(f"{key}={getattr(config, key)} is out of range; expected more than 0")
    if config.decay_rate > 1:
        raise ValueError(f"decay_rate={config.decay_rate} is out of range; expected at most 1, which never decays")
    if config.num_threads is not None and config.num_threads > MOST_THREADS:
        raise ValueError(f"num_threads={config.num_threads} is out of range; expected at most {MOST_THREADS}")
    if config.test_fraction is not None and not 0 < config.test_fraction < 1:
        raise ValueError(f"test_fraction={config.test_fraction} is out of range; expected more than 0 and less than 1")
    for key in ("server_fraction", "client_eval_fraction"):
        if not getattr(config, key) < 1:
            raise ValueError(f"{key}={getattr(config, key)} leaves nothing to train on; expected less than 1")


def _check_known(composed: DictConfig) -> None:
    """`+key=value` adds any key; only a group's own parameters may be added."""
    parts = {"": (composed, Config), "model.": (composed.model, ModelSettings)}
    parts["tensorboard."] = (composed.tensorboard, TensorBoardSettings)
    parts["lora."] = (composed.lora, LoraSettings)
    parts["faults."] = (composed.faults, FaultSettings)
    parts["privacy."] = (composed.privacy, PrivacySettings)
    for prefix, (node, schema) in parts.items():
        for key in sorted(set(map(str, node)) - {item.name for item in fields(schema)}):
            raise ValueError(unknown(prefix + key))
    for group in ("loss", "partition", "strategy"):
        if "_target_" not in composed[group]:
            raise ValueError(f"{group} has no _target_; choose a file of config/{group}/ or give {group}._target_")


def _check_loss(loss: Mapping[str, Any]) -> None:
    """`beta` scales rewards whatever the loss; the other range is that of our own losses."""
    ranges: dict[str, tuple[Callable[[float], bool], str]] = {"beta": (lambda value: value > 0, "a number above 0")}
    if str(loss["_target_"]).startswith("losses."):
        ranges["label_smoothing"] = (lambda value: 0 <= value < 0.5, "a number from 0 to below 0.5")
    for key, (fits, text) in ranges.items():
        value = loss.get(key, 0.1)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not fits(value):
            raise ValueError(f"loss.{key}={value} is out of range; expected {text}")


def _check_lora(lora: LoraSettings) -> None:
    if lora.r < 0:
        raise ValueError(f"lora.r={lora.r} is out of range; expected at least 0, where 0 trains all weights")
    if lora.alpha is not None and not 0 < lora.alpha < math.inf:
        raise ValueError(f"lora.alpha={lora.alpha} is out of range; expected a finite number above 0")
    if lora.target_modules == []:
        raise ValueError("lora.target_modules is empty; give at least one, or leave it out")


def _check_faults(config: Config) -> None:
    faults = config.faults
    for key in ("dropout_rate", "straggler_rate", "nan_rate"):
        if not 0 <= getattr(faults, key) <= 1:
            raise ValueError(f"faults.{key}={getattr(faults, key)} is out of range; expected a number from 0 to 1")
    for key in ("straggler_seconds", "byzantine_clients", "byzantine_scale"):
        if not 0 <= getattr(faults, key) < math.inf:
            raise ValueError(f"faults.{key}={getattr(faults, key)} is out of range; expected a number of at least 0")
    if faults.byzantine_clients > config.client_num_in_total:
        raise ValueError(
            f"faults.byzantine_clients={faults.byzantine_clients} is more than "
            f"client_num_in_total={config.client_num_in_total}"
        )
    if config.client_timeout is not None and not config.client_timeout > 0:
        raise ValueError(f"client_timeout={config.client_timeout} is out of range; expected more than 0")
    trained = config.clients_per_round or config.client_num_in_total
    if config.mode == "federated" and config.min_fit_clients > trained:
        raise ValueError(f"min_fit_clients={config.min_fit_clients} is more than the {trained} clients of a round")


def _check_engine(config: Config) -> None:
    """What Flower's engines cannot do, and what they need."""
    if config.engine != "local":
        if config.mode != "federated":
            raise ValueError(f"mode={config.mode} needs engine=local: a run of one client has nothing to send")
        if config.trainer != "BasicTrainer" or config.trainer_processes is not None:
            raise ValueError(
                f"engine={config.engine} trains each client in one process; use trainer=BasicTrainer without "
                "trainer_processes, or engine=local"
            )
    if is_own(config) and config.mode == "centralized":
        raise ValueError("mode=centralized pools all pairs, which partition=own leaves with the clients")
    own_files = bool(config.partition.get("client_data"))
    if is_own(config) and config.engine != "flower" and not own_files:
        raise ValueError("partition=own needs client_data=[a.jsonl,b.jsonl,...], a file for each client")
    if is_own(config) and config.engine == "flower" and config.accuracy_on != "client" and not own_files:
        raise ValueError(
            f"accuracy_on={config.accuracy_on} with partition=own: SuperNodes do not have the server's pairs; use "
            "accuracy_on=client"
        )
    if is_own(config) and config.accuracy_on == "client" and not config.client_eval_fraction:
        raise ValueError("accuracy_on=client but client_eval_fraction=0 leaves clients nothing to score on; raise it")


def _check_privacy(config: Config) -> None:
    privacy = config.privacy
    for key, choices in PRIVACY_CHOICES.items():
        value = getattr(privacy, key)
        if value not in choices:
            raise ValueError(
                f"privacy.{key}={value} is unknown; expected {listed(choices)}{nearest(str(value), choices)}"
            )
    for key in ("clipping_norm", "noise_multiplier", "max_epsilon"):
        value = getattr(privacy, key)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"privacy.{key}={value} is out of range; expected a finite number above 0")
    if privacy.kind != "none" and privacy.seeded_noise and is_own(config) and config.engine == "flower":
        raise ValueError(
            "privacy.seeded_noise=true with SuperNodes of their own data: whoever knows the seed subtracts the noise; "
            "leave it out"
        )
    if privacy.kind != "none" and not privacy.seeded_noise and config.checkpoint_every != 1 and not config.debug:
        raise ValueError(
            f"checkpoint_every={config.checkpoint_every} with privacy.seeded_noise=false: a resumed run would draw new "
            "noise in rounds whose cost it has forgotten; use checkpoint_every=1"
        )
    if privacy.kind == "central_dp" and privacy.clipping == "client" and config.wire_dtype != "float32":
        raise ValueError(
            f"wire_dtype={config.wire_dtype} rounds what clients have clipped, so updates may be longer than "
            "privacy.clipping_norm; use privacy.clipping=server or wire_dtype=float32"
        )
    # To publish all that one client has, drawn at random, would be (0, 1/N)-private.
    if not 0 < privacy.delta < 1 or (privacy.kind != "none" and not privacy.delta * config.client_num_in_total < 1):
        raise ValueError(
            f"privacy.delta={privacy.delta} is out of range; expected more than 0 and less than 1/client_num_in_total"
        )


def _check_strategy(config: Config) -> None:
    """What Flower would wait for in vain, or leave undone without a word."""
    node: Any = config.strategy
    prefix = "strategy"
    while isinstance(node, Mapping):
        for key in ("fraction_train", "fraction_evaluate"):
            value = node.get(key, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{prefix}.{key}={value} is out of range; expected a number from 0 to 1")
        if str(node.get("_target_")).startswith("flwr."):
            _check_flowers_numbers(node, prefix)
        mod = CLIPPING_MODS.get(str(node.get("_target_")).rpartition(".")[2])
        if mod and mod not in config.client_mods:
            raise ValueError(
                f"client_mods={config.client_mods} lacks {mod}: {node['_target_']} adds its noise but clients would "
                "not clip; add the mod"
            )
        node, prefix = node.get("strategy"), f"{prefix}.strategy"


def _check_flowers_numbers(node: Mapping[str, Any], prefix: str) -> None:
    """What Flower's strategies would compute nonsense with: by tau they divide."""
    malicious, tau = node.get("num_malicious_nodes", 0), node.get("tau", 1.0)
    if isinstance(malicious, int) and malicious < 0:
        raise ValueError(f"{prefix}.num_malicious_nodes={malicious} is out of range; expected at least 0")
    if isinstance(tau, int | float) and not tau > 0:
        raise ValueError(f"{prefix}.tau={tau} is out of range; expected more than 0")


def _check_together(config: Config) -> None:
    if config.max_tokens_per_step is None and config.batch_size % config.gradient_accumulation_steps:
        raise ValueError(
            f"batch_size={config.batch_size} is not divisible by "
            f"gradient_accumulation_steps={config.gradient_accumulation_steps}; batch_size counts the pairs of a "
            "whole step"
        )
    if config.max_length - config.max_prompt_length < 2:
        raise ValueError(
            f"max_length={config.max_length} leaves fewer than 2 response tokens beside "
            f"max_prompt_length={config.max_prompt_length}; raise max_length or lower max_prompt_length"
        )
    if config.precision and config.model.fsdp_policy_mp not in (None, config.precision):
        raise ValueError(
            f"precision={config.precision} and model.fsdp_policy_mp={config.model.fsdp_policy_mp} name two precisions; "
            "leave model.fsdp_policy_mp out or make it null"
        )
    if config.clients_per_round is not None and config.clients_per_round > config.client_num_in_total:
        raise ValueError(
            f"clients_per_round={config.clients_per_round} is more than "
            f"client_num_in_total={config.client_num_in_total}"
        )
    trained = config.clients_per_round or config.client_num_in_total
    if config.mode == "federated" and config.clients_in_parallel > trained:
        raise ValueError(
            f"clients_in_parallel={config.clients_in_parallel} is more than the {trained} clients of a round; lower it"
        )
    if not config.datasets and not is_own(config):
        raise ValueError("datasets is empty; give at least one, e.g. datasets=[hh]")
