"""The typed schema of the command line. Defaults stand here, in the YAML files of config/, and nowhere else.

Defaults are those of the published code, except where docs/decisions.md says why not; `model=demo` brings settings of
its own.
"""

import difflib
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args

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
    test_fraction: float | None = None  # of data without a test split of its own; null: 0.1 (se: 0.01)
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
GROUPS = ("model", "loss", "partition", "strategy")

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
    "learning_rate": "use lr",
    "n_clients": "use client_num_in_total",
    "num_clients": "use client_num_in_total",
    "client_num_per_round": "use clients_per_round",
    "resume": "this version cannot resume a run",
}

# Top-level keys that only a group's file reads: without effect unless the chosen file asks for the second key.
READ_BY_GROUP = {
    "temp": ("strategy", "temp"),
    "decay_rate": ("strategy", "decay_rate"),
    "decay_target": ("strategy", "decay_rate"),
    "weighting": ("strategy", "weighting"),
    "clients_per_round": ("strategy", "clients_per_round"),
    "data_evenly_distributed": ("partition", "data_evenly_distributed"),
}
# Keys that other settings leave without effect: the key, when, and the reason.
WITHOUT_EFFECT: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("anchor_norm", lambda config: not config.alpha, "alpha=0"),
    ("temp", lambda config: config.weighting == "samples", "weighting=samples"),
    ("decay_target", lambda config: config.decay_rate == 1, "decay_rate=1"),
    ("n_eval_examples", lambda config: not config.server_fraction, "server_fraction=0"),
    ("eval_every", lambda config: not config.client_eval_fraction, "client_eval_fraction=0"),
    ("do_first_eval", lambda config: not config.client_eval_fraction, "client_eval_fraction=0"),
    ("data_dir", lambda config: set(config.datasets) == {"demo"}, "datasets=[demo], which is made in code"),
)
# Flower's wrappers that leave the clipping, and so the privacy, to a mod of the clients.
CLIPPING_MODS = {
    "DifferentialPrivacyClientSideFixedClipping": "flwr.clientapp.mod.fixedclipping_mod",
    "DifferentialPrivacyClientSideAdaptiveClipping": "flwr.clientapp.mod.adaptiveclipping_mod",
}


def register() -> None:
    """Make the schema and the functions that YAML files call known to Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("either", lambda value, default: default if value is None else value, replace=True)
    OmegaConf.register_new_resolver("fraction", lambda part, whole: 1.0 if part is None else part / whole, replace=True)
    OmegaConf.register_new_resolver("scratch", lambda: str(scratch()), replace=True)


def scratch() -> Path:
    """Where Hydra writes its own record of a `--multirun`; `main` removes it."""
    return Path(tempfile.gettempdir()) / f"fedpo-multirun-{os.getpid()}"


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
    _check_known(composed)
    config: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
    _check_values(config)
    _check_loss(config.loss)
    _check_together(config)
    _check_strategy(config)
    _check_effect(config, given)
    unresolved = {group: OmegaConf.to_container(composed[group]) for group in ("strategy", "partition")}
    _check_read(given, unresolved, choices)
    settings = config if config.mode == "federated" else _without_federation(config, given)
    return Settings(settings, given | _passed_on(given, unresolved))


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse what Hydra would take in silence or give up on without naming it.

    Raises:
        ValueError: Naming the argument, what was expected, and the way out.
    """
    flags = [argument.startswith("-") for argument in arguments]
    settings = [place for place, argument in enumerate(arguments) if "=" in argument and not flags[place]]
    for place, argument in enumerate(arguments):
        name = argument.lstrip("-").partition("=")[0]
        if flags[place] and name in (*keys(), *GROUPS):
            raise ValueError(f"{argument} is refused: settings have no dashes; write {argument.lstrip('-')}")
        if flags[place] and settings and settings[0] < place < settings[-1]:
            raise ValueError(f"{argument} stands between settings; put it before the first or after the last")
    for argument in arguments:
        key, equals, value = argument.partition("=")
        name = key.lstrip("+~")
        if equals and not name:
            raise ValueError(_malformed(argument))
        if name in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.chdir"):
            raise ValueError(f"{name} is refused: a run writes to output_dir/exp_name/date_time; use output_dir")
        if key.startswith("~") and name in keys():
            raise ValueError(f"{argument} is refused: a key cannot be removed; leave it out to get its default")
        if equals and name in GROUPS and re.match(r"$|null$|true$|false$|\d+$|[\[{]", value, re.IGNORECASE):
            raise ValueError(f"{argument} is refused; expected the name of one file in config/{name}/, without .yaml")


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
    if not re.fullmatch(r"[^/\\\x00]+", config.exp_name) or config.exp_name.strip(". ") == "":
        raise ValueError(
            f"exp_name={config.exp_name} names no folder; expected a name without slashes, e.g. exp_name=a"
        )
    for item in fields(config):
        value = getattr(config, item.name)
        if item.type is float and not math.isfinite(value):
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
    for key in ("server_fraction", "client_eval_fraction"):
        if not getattr(config, key) < 1:
            raise ValueError(f"{key}={getattr(config, key)} leaves nothing to train on; expected less than 1")


def _check_known(composed: DictConfig) -> None:
    """`+key=value` adds any key; only a group's own parameters may be added."""
    parts = {"": (composed, Config), "model.": (composed.model, ModelSettings)}
    parts["tensorboard."] = (composed.tensorboard, TensorBoardSettings)
    for prefix, (node, schema) in parts.items():
        for key in sorted(set(map(str, node)) - {item.name for item in fields(schema)}):
            raise ValueError(_unknown(prefix + key))
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


def _check_strategy(config: Config) -> None:
    """What Flower would wait for in vain, or leave undone without a word."""
    node: Any = config.strategy
    prefix = "strategy"
    while isinstance(node, Mapping):
        for key in ("fraction_train", "fraction_evaluate"):
            value = node.get(key, 0.0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{prefix}.{key}={value} is out of range; expected a number from 0 to 1")
        mod = CLIPPING_MODS.get(str(node.get("_target_")).rpartition(".")[2])
        if mod and mod not in config.client_mods:
            raise ValueError(
                f"client_mods={config.client_mods} lacks {mod}: {node['_target_']} adds its noise but clients would "
                "not clip; add the mod"
            )
        node, prefix = node.get("strategy"), f"{prefix}.strategy"


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
        aggregation = {"clients_per_round", "temp", "weighting", "decay_rate", "decay_target"}
        for key in sorted(key for key in given if key in aggregation or key.split(".")[0] == "strategy"):
            raise ValueError(f"{key} has no effect with mode={config.mode}, which aggregates nothing; leave it out")
    for key, applies, reason in WITHOUT_EFFECT:
        if key in given and applies(config):
            raise ValueError(f"{key} has no effect with {reason}; leave it out")


def _check_read(given: Iterable[str], unresolved: Mapping[str, object], choices: Mapping[str, str | None]) -> None:
    """A given top-level key that is a parameter of a group must be read by the chosen file, as "${key}"."""
    for key in sorted(given & READ_BY_GROUP.keys()):
        group, read = READ_BY_GROUP[key]
        if f"${{{read}}}" not in str(unresolved[group]):
            raise ValueError(
                f"{key} has no effect with {group}={choices.get(group)}, which reads no {read}; leave it out"
            )


def _passed_on(given: Iterable[str], unresolved: Mapping[str, Any]) -> frozenset[str]:
    """The group parameters that given top-level keys fill: `temp` gives `strategy.temp`."""
    return frozenset(
        f"{group}.{parameter}"
        for key in given & READ_BY_GROUP.keys()
        for group, read in [READ_BY_GROUP[key]]
        for parameter, value in unresolved[group].items()
        if f"${{{read}}}" in str(value) and not isinstance(value, Mapping)
    )


def explain(message: str) -> str:
    """Hydra's and OmegaConf's complaint about the command line as one line that names the way out."""
    full_key = re.search(r"full_key: (\S+)", message)
    message = re.sub(r"(?m)^\s*(full_key|object_type|reference_type|Set the|See https).*$", "", message)
    text = " ".join(message.split())
    if found := re.search(
        r"Could not find '(.+?)/([^'/]*)'(?: Available options in '\w+': (.*?) Config search)?", text
    ):
        group, name, options = found.group(1), found.group(2), (found.group(3) or "").split()
        return f"{group}={name} is unknown; expected {_or(options)}{_nearest(name, options)}"
    if found := re.search(r"Error parsing override '(.*?)' |LexerNoViableAltException: (.*?)(?: \^|$)", text):
        return _malformed(found.group(1) or found.group(2))
    if found := re.search(
        r"Error merging override \+*([\w.]+)=(.*?) (?:Value|field|Invalid|Incompatible|Cannot)", text
    ):
        return f"{found.group(1)}={found.group(2)} is of the wrong type; expected {_expected(found.group(1))}"
    if found := re.search(r"Multiple values for (\w+)", text):
        return f"{found.group(1)} is chosen twice; write {found.group(1)}=name once and without +"
    if found := re.search(r"Ambiguous value for argument '(.*?)' ", text):
        key, _, value = found.group(1).partition("=")
        return f"{found.group(1)} has several values; use {key}=[{value}] for a list or add --multirun for several runs"
    unknown = re.search(r"(?:Could not override|Key|key) '\+?([\w.]+)'", text)
    if unknown and ("not in" in text or "override" in text):
        return _unknown(unknown.group(1))
    if text.startswith("Interpolation key"):
        return f"{text}; ${{...}} must name a key, e.g. ${{lr}}"
    return f"{full_key.group(1)}: {text}" if full_key and full_key.group(1) not in text else text


def _malformed(argument: str) -> str:
    return f"{argument!r} is no setting; expected key=value, special characters quoted as in 'exp_name=\"a=b\"'"


def _unknown(key: str) -> str:
    refused = REFUSED.get(key) or REFUSED.get(key.split(".")[0])
    if refused:
        return f"{key} is refused: {refused}"
    group = key.split(".")[0]
    own = f", and +{key}=... gives your own {group}._target_ a parameter" if group in GROUPS[1:] else ""
    return (
        f"unknown key {key}{_nearest(key, [*keys(), *_group_keys()])}; every key is in fed/config.py and config/{own}"
    )


def _group_keys() -> list[str]:
    """Dotted parameters of all files of the groups whose keys the schema leaves open."""
    found = set()
    for group in GROUPS[1:]:
        for path in (Path(__file__).parents[1] / "config" / group).glob("*.yaml"):
            node: Any = OmegaConf.to_container(OmegaConf.load(path))
            found |= {f"{group}.{key}" for key in node.get(group, node)}
    return sorted(found)


def _expected(key: str) -> str:
    """What the schema wants, in words, with the default as an example."""
    schema: Any = Config
    for name in key.split("."):
        item = {item.name: item for item in fields(schema)}.get(name) if is_dataclass(schema) else None
        if item is None:
            return "another type"
        schema = item.type
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", list[str]: "a list, [a,b]"}
    kinds = (
        " or ".join(words.get(kind, "null") for kind in get_args(schema) or (schema,)) if schema != list[str] else ""
    )
    return kinds or words[list[str]]


def _or(choices: Iterable[str]) -> str:
    return ", ".join(choices)


def _nearest(name: str, known: Iterable[str]) -> str:
    """The known name with the same last part, or that begins `name` or is begun by it, or that looks most like it."""
    known = list(known)
    parent, _, last = name.rpartition(".")
    same = [other for other in known if other.rpartition(".")[2] == last]
    siblings = [other for other in known if other.rpartition(".")[0] == parent] or known
    begins = [other for other in siblings if len(other) > 1 and (other.startswith(name) or name.startswith(other))]
    alike = difflib.get_close_matches(name, siblings, n=1, cutoff=0)
    found = same or sorted(begins, key=len, reverse=True) or alike
    return f" (nearest: {found[0]})" if found else ""
