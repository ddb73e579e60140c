"""The typed schema of the command line. Defaults stand here, in the YAML files of config/, and nowhere else.

Defaults are those of the published code, except where docs/decisions.md says why not; `model=demo` brings settings of
its own.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf


@dataclass
class ModelSettings:
    """`model.*`; presets stand in config/model/."""

    name_or_path: str | None = "demo"  # demo, a local directory, or a hub name
    tokenizer_name_or_path: str | None = None  # None: name_or_path
    gguf_file: str | None = None  # a GGUF file; name_or_path may then be left out
    archive: str | None = None  # weights that seed policy and reference: HF directory, *.safetensors or policy.pt
    block_name: str | None = None  # class name of the repeated block
    policy_dtype: str = "float32"
    reference_dtype: str | None = None
    fsdp_policy_mp: str | None = None  # mixed precision: compute in this dtype, keep policy_dtype weights
    trust_remote_code: bool = False


@dataclass
class TensorBoardSettings:
    """`tensorboard.*`."""

    enabled: bool = True


@dataclass
class Config:
    """Every key of the command line. `model`, `loss`, `partition` and `strategy` are chosen from config/<group>/."""

    model: ModelSettings = field(default_factory=ModelSettings)
    loss: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] = field(default_factory=dict)

    # The run
    exp_name: str = "fedpo"
    mode: str = "federated"  # federated | centralized (one client holds all pairs) | local (every client alone)
    seed: int = 0
    deterministic: bool = False  # refuse operations whose result may vary from run to run
    debug: bool = False  # keep metrics, save no model
    output_dir: str = "data"  # runs go to output_dir/exp_name/date_time
    cache_dir: str = ".cache"  # reference log-probs and downloaded data sets
    num_threads: int | None = None  # CPU threads; null: torch's choice
    device: str | None = None  # cpu, cuda, ...; null: cuda if there is one
    tensorboard: TensorBoardSettings = field(default_factory=TensorBoardSettings)

    # Data
    datasets: list[str] = field(default_factory=lambda: ["demo"])
    data_dir: str | None = None
    n_train_examples: int | None = None  # training pairs used at most, drawn by seed; null: all
    use_small_dataset: bool = False  # a seeded tenth of the training pairs
    data_evenly_distributed: bool = True  # partition=contiguous: equal blocks, or random cuts
    server_fraction: float = 0.05  # of the training pairs: the server's validation pairs
    client_eval_fraction: float = 0.05  # of each client's pairs: its own held-out pairs
    n_eval_examples: int = 256  # validation pairs used at most
    n_test_examples: int = 512  # test pairs used at most
    max_length: int = 512  # tokens of prompt and response
    max_prompt_length: int = 256

    # The federation
    client_num_in_total: int = 10
    clients_per_round: int | None = None  # null: all
    comm_round: int = 100
    frequency_of_test: int = 1  # rounds between server evaluations
    temp: float = 0.1  # FeDPO: inverse temperature of the accuracy softmax
    decay_rate: float = 0.995  # FeDPO: of a client that did not beat the server
    decay_target: str = "lr"  # lr | loss
    weighting: str = "accuracy"  # accuracy | samples | accuracy_times_samples
    accuracy_on: str = "server"  # server | client | test: pairs that a client's result is scored on
    alpha: float = 1.0  # weight of the anchor term
    anchor_norm: str = "token"  # token | sum
    client_mods: list[str] = field(default_factory=list)  # dotted paths of Flower mods

    # Local training
    trainer: str = "BasicTrainer"  # BasicTrainer | FSDPTrainer
    batch_size: int = 4  # pairs per optimizer step
    eval_batch_size: int = 16
    gradient_accumulation_steps: int = 2
    local_epochs: int = 1  # passes over a client's pairs per round
    local_steps: int | None = None  # optimizer steps per round instead
    optimizer: str = "RMSprop"  # RMSprop | AdamW | Adam | SGD
    lr: float = 5e-7
    warmup_steps: int = 150
    max_grad_norm: float = 10.0
    client_optimizer: str = "reset"  # reset | persist: optimizer state and warm-up across rounds
    reshuffle: bool = True  # false: every round replays the same order from its start, as published
    activation_checkpointing: bool = False
    eval_every: int = 20_000  # pairs between a client's evaluations on its held-out pairs
    do_first_eval: bool = False  # also before its first step of a round


CHOICES = {
    "mode": ("federated", "centralized", "local"),
    "decay_target": ("lr", "loss"),
    "weighting": ("accuracy", "samples", "accuracy_times_samples"),
    "accuracy_on": ("server", "client", "test"),
    "anchor_norm": ("token", "sum"),
    "client_optimizer": ("reset", "persist"),
    "optimizer": ("RMSprop", "AdamW", "Adam", "SGD"),
    "trainer": ("BasicTrainer", "FSDPTrainer"),
}
AT_LEAST_ONE = (
    "client_num_in_total",
    "clients_per_round",
    "comm_round",
    "frequency_of_test",
    "batch_size",
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
)
AT_LEAST_ZERO = ("seed", "alpha", "warmup_steps", "server_fraction", "client_eval_fraction")
POSITIVE = ("lr", "max_grad_norm", "decay_rate")

# Keys of the original code bases that are not taken over, and what to use instead.
REFUSED = {
    "trainer=TensorParallelTrainer": "this version trains on one device; use BasicTrainer or FSDPTrainer",
    "n_epochs": "passes are counted per client and round; use local_epochs",
    "n_examples": "training length is set per client and round; use local_steps",
    "local_dirs": "use output_dir for runs and cache_dir for caches",
    "local_run_dir": "runs go to output_dir/exp_name/date_time; use output_dir",
    "fsdp_port": "this version trains in one process and needs no port",
    "save_every": "the final model is saved to policy/; this version has no intermediate checkpoints",
    "minimum_log_interval_secs": "every optimizer step is logged",
    "sample_during_eval": "this version draws no samples during evaluation",
    "n_eval_model_samples": "this version draws no samples during evaluation",
    "wandb": "curves go to TensorBoard and metrics.jsonl; wandb is not supported",
    "server_not_train": "it did nothing in the original; the server never trains",
    "n_clients": "use client_num_in_total",
    "num_clients": "use client_num_in_total",
    "client_num_per_round": "use clients_per_round",
    "resume": "this version cannot resume a run",
}

# Top-level keys that are parameters of a group: without effect unless the chosen file of the group reads them.
READ_BY_GROUP = {
    "temp": "strategy",
    "decay_rate": "strategy",
    "weighting": "strategy",
    "clients_per_round": "strategy",
    "data_evenly_distributed": "partition",
}


def register() -> None:
    """Make the schema and the functions that YAML files call known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("either", lambda value, default: default if value is None else value, replace=True)
    OmegaConf.register_new_resolver("fraction", lambda part, whole: 1.0 if part is None else part / whole, replace=True)


@dataclass(frozen=True)
class Settings:
    """A checked configuration and what was typed to get it."""

    config: Config
    given: frozenset[str]  # keys typed on the command line


def checked(composed: DictConfig, overrides: Sequence[str], choices: Mapping[str, str | None]) -> Settings:
    """The composed configuration as plain values, with what `mode` implies.

    Args:
        composed: Unresolved, as Hydra gives it.
        overrides: What was typed, e.g. ["temp=1", "strategy=fedavg"].
        choices: The file chosen for each group.

    Raises:
        ValueError: Naming the value, what was expected, and the way out.
    """
    given = frozenset(re.split("[=@]", override.lstrip("+~"), maxsplit=1)[0] for override in overrides)
    config: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
    _check_values(config)
    _check_together(config)
    _check_effect(config, given)
    for group in ("strategy", "partition"):
        _check_read(given, group, str(OmegaConf.to_container(composed[group])), choices.get(group))
    return Settings(config if config.mode == "federated" else _without_federation(config, given), given)


def _without_federation(config: Config, given: frozenset[str]) -> Config:
    """Plain DPO, one client at a time: no weights, no decay, no anchor, an optimizer that is never reset."""
    one_client = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0}
    steps = config.local_steps
    if steps is not None and config.mode == "centralized":
        steps *= config.client_num_in_total  # as many pairs a round as all clients together
    return replace(
        config,
        strategy={"_target_": "server.strategies.StreamingFedAvg", **one_client},
        alpha=config.alpha if "alpha" in given else 0.0,
        client_optimizer=config.client_optimizer if "client_optimizer" in given else "persist",
        local_steps=steps,
    )


def keys(schema: type = Config, prefix: str = "") -> list[str]:
    """All dotted keys of the schema."""
    found: list[str] = []
    for item in fields(schema):
        nested = item.type if is_dataclass(item.type) else None
        found.append(prefix + item.name)
        if nested is not None:
            found += keys(nested, f"{prefix}{item.name}.")  # type: ignore[arg-type]
    return found


def _check_values(config: Config) -> None:
    for key, choices in CHOICES.items():
        value = getattr(config, key)
        if value not in choices:
            refused = REFUSED.get(f"{key}={value}")
            raise ValueError(
                f"{key}={value} is refused: {refused}"
                if refused
                else f"{key}={value} is unknown; expected {_or(choices)}{_nearest(str(value), choices)}"
            )
    for names, bound, text in ((AT_LEAST_ONE, 1, "at least 1"), (AT_LEAST_ZERO, 0, "at least 0")):
        for key in names:
            value = getattr(config, key)
            if value is not None and not value >= bound:
                raise ValueError(f"{key}={value} is out of range; expected {text}")
    for key in POSITIVE:
        if not getattr(config, key) > 0:
            raise ValueError(f"{key}={getattr(config, key)} is out of range; expected more than 0")
    for key in ("server_fraction", "client_eval_fraction"):
        if not getattr(config, key) < 1:
            raise ValueError(f"{key}={getattr(config, key)} leaves nothing to train on; expected less than 1")


def _check_together(config: Config) -> None:
    if config.batch_size % config.gradient_accumulation_steps:
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
    if config.clients_per_round is not None and config.clients_per_round > config.client_num_in_total:
        raise ValueError(
            f"clients_per_round={config.clients_per_round} is more than "
            f"client_num_in_total={config.client_num_in_total}"
        )
    if not config.datasets:
        raise ValueError("datasets is empty; give at least one, e.g. datasets=[hh]")


def _check_effect(config: Config, given: frozenset[str]) -> None:
    if "local_steps" in given and "local_epochs" in given and config.local_steps is not None:
        raise ValueError("local_steps and local_epochs are both given; choose one")
    if config.mode != "federated":
        for key in given & {"clients_per_round", "temp", "weighting", "decay_rate", "decay_target", "strategy"}:
            raise ValueError(f"{key} has no effect with mode={config.mode}, which aggregates nothing; leave it out")
    if "anchor_norm" in given and not config.alpha:
        raise ValueError("anchor_norm has no effect with alpha=0; leave it out")


def _check_read(given: Iterable[str], group: str, unresolved: str, chosen: str | None) -> None:
    """A given top-level key that is a parameter of this group must be read by the chosen file, as "${key}"."""
    for key in given:
        if READ_BY_GROUP.get(key) == group and f"${{{key}}}" not in unresolved:
            raise ValueError(f"{key} has no effect with {group}={chosen}, which does not read it; leave it out")


def explain(message: str, known: Iterable[str] | None = None) -> str:
    """Hydra's and OmegaConf's complaint about the command line as one line that names the way out."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = " ".join(
        line for line in lines if not line.startswith(("full_key", "object_type", "reference_type", "Set the"))
    )
    unknown = re.search(r"(?:Could not override|Key|key) '\+?([\w.]+)'", text)
    if unknown and ("not in" in text or "override" in text):
        key = unknown.group(1)
        refused = REFUSED.get(key) or REFUSED.get(key.split(".")[0])
        if refused:
            return f"{key} is refused: {refused}"
        known = list(known or keys())
        return f"unknown key {key}{_nearest(key, known)}; every key is in fed/config.py and config/"
    return text


def _or(choices: Iterable[str]) -> str:
    return ", ".join(choices)


def _nearest(name: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {found[0]}?)" if found else ""
