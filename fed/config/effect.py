"""Keys that would do nothing with the other settings are refused."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from fed.config.schema import Config, FaultSettings, PrivacySettings, is_own

# Top-level keys that only a group's file reads: without effect unless the chosen file asks for the second key.
READ_BY_GROUP = {
    "temp": ("strategy", "temp"),
    "decay_rate": ("strategy", "decay_rate"),
    "decay_target": ("strategy", "decay_rate"),
    "weighting": ("strategy", "weighting"),
    "clients_per_round": ("strategy", "clients_per_round"),
    "data_evenly_distributed": ("partition", "data_evenly_distributed"),
    "client_data": ("partition", "client_data"),
}

OF_THE_SERVERS_DATA = ("data_dir", "test_fraction", "n_eval_examples", "n_test_examples")
# Keys that other settings leave without effect: the key, when, and the reason.
WITHOUT_EFFECT: tuple[tuple[str, Callable[[Config], bool], str], ...] = (
    ("anchor_norm", lambda config: not config.alpha, "alpha=0"),
    ("n_eval_model_samples", lambda config: not config.sample_during_eval, "sample_during_eval=false"),
    ("temp", lambda config: config.weighting == "samples", "weighting=samples"),
    ("decay_target", lambda config: config.decay_rate == 1, "decay_rate=1"),
    ("n_eval_examples", lambda config: not config.server_fraction, "server_fraction=0"),
    ("eval_every", lambda config: not config.client_eval_fraction, "client_eval_fraction=0"),
    ("do_first_eval", lambda config: not config.client_eval_fraction, "client_eval_fraction=0"),
    ("batch_size", lambda config: config.max_tokens_per_step is not None, "max_tokens_per_step, which counts tokens"),
    ("prefix_sharing", lambda config: not config.packing, "packing=false"),
    ("test_fraction", lambda config: set(config.datasets) == {"demo"}, "datasets=[demo], which has a test split"),
    ("data_dir", lambda config: set(config.datasets) == {"demo"}, "datasets=[demo], which is made in code"),
    ("cpu_matmul", lambda config: (config.device or "cpu").partition(":")[0] != "cpu", "a device that is not the CPU"),
    *(
        (key, lambda config: config.debug, "debug=true, which saves no model")
        for key in ("checkpoint_every", "checkpoint_keep", "checkpoint_within_round")
    ),
    ("checkpoint_keep", lambda config: config.checkpoint_every == 0, "checkpoint_every=0"),
    ("checkpoint_within_round", lambda config: config.checkpoint_every != 1, "checkpoint_every other than 1"),
    ("clients_in_parallel", lambda config: config.engine == "flower", "engine=flower, where nodes train by themselves"),
    ("clients_in_parallel", lambda config: config.mode != "federated", "one client at a time, as mode= says"),
    ("cpu_offload", lambda config: config.trainer != "FSDPTrainer", "a trainer that is not FSDPTrainer"),
    ("faults.straggler_rate", lambda config: config.client_timeout is None, "client_timeout=null: nobody is too late"),
    ("faults.straggler_seconds", lambda config: config.faults.straggler_rate == 0, "faults.straggler_rate=0"),
    ("faults.byzantine_scale", lambda config: config.faults.byzantine_clients == 0, "faults.byzantine_clients=0"),
    ("server_fraction", is_own, "partition=own, where the server's pairs are all its own"),
    *(
        (key, is_own, "partition=own, where every client's pairs are its own")
        for key in ("use_small_dataset", "n_train_examples")
    ),
    *((key, lambda config: not config.datasets, "datasets=[]") for key in OF_THE_SERVERS_DATA),
    *(
        (key, lambda config: config.engine != "local", "an engine that is not engine=local")
        for key in ("checkpoint_within_round", *(f"faults.{item.name}" for item in fields(FaultSettings)))
    ),
    *(
        (
            key,
            lambda config: config.engine != "local",
            "an engine that is not engine=local: a client sends results only",
        )
        for key in ("eval_every", "do_first_eval")
    ),
    ("wire_dtype", lambda config: config.mode != "federated", "one client at a time, as mode= says"),
    ("lora.alpha", lambda config: config.lora.r == 0, "lora.r=0"),
    ("lora.target_modules", lambda config: config.lora.r == 0, "lora.r=0"),
    ("privacy.clipping", lambda config: config.privacy.kind == "local_dp", "privacy=local_dp: every client clips"),
    *(
        (f"privacy.{item.name}", lambda config: config.privacy.kind == "none", "privacy=none")
        for item in fields(PrivacySettings)
    ),
)


def check_effect(config: Config, given: frozenset[str]) -> None:
    """Find out whether another setting leaves a given key nothing to do.

    Raises:
        ValueError: If so, with that setting.
    """
    if "engine" in given and config.engine == "flower":
        raise ValueError("engine=flower is what `flwr run` starts; use engine=local or engine=ray here")
    if "local_steps" in given and "local_epochs" in given and config.local_steps is not None:
        raise ValueError("local_steps and local_epochs are both given; choose one")
    if config.mode != "federated":
        aggregation = {"temp", "weighting", "decay_rate", "decay_target"}
        if config.mode == "local":
            aggregation.add("clients_per_round")  # of centralised training it says how many pairs are a round's
        for key in sorted(key for key in given if key in aggregation or key.split(".")[0] in ("strategy", "privacy")):
            raise ValueError(f"{key} has no effect with mode={config.mode}, which aggregates nothing; leave it out")
    for key, applies, reason in WITHOUT_EFFECT:
        if key in given and applies(config):
            raise ValueError(f"{key} has no effect with {reason}; leave it out")


def check_read(given: Iterable[str], unresolved: Mapping[str, object], choices: Mapping[str, str | None]) -> None:
    """A given top-level key that is a parameter of a group must be read by the chosen file, as "${key}".

    Raises:
        ValueError: If it is not.
    """
    for key in sorted(given & READ_BY_GROUP.keys()):
        group, read = READ_BY_GROUP[key]
        if f"${{{read}}}" not in str(unresolved[group]):
            raise ValueError(
                f"{key} has no effect with {group}={choices.get(group)}, which reads no {read}; leave it out"
            )


def passed_on(given: Iterable[str], unresolved: Mapping[str, Any]) -> frozenset[str]:
    """The group parameters that given top-level keys fill: `temp` gives `strategy.temp`."""
    return frozenset(
        f"{group}.{parameter}"
        for key in given & READ_BY_GROUP.keys()
        for group, read in [READ_BY_GROUP[key]]
        for parameter, value in unresolved[group].items()
        if f"${{{read}}}" in str(value) and not isinstance(value, Mapping)
    )
