"""Checks of the composed configuration: values that cannot work, alone or together, are refused."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace

from omegaconf import DictConfig, OmegaConf

from fed.config.combinations import check_combinations
from fed.config.effect import check_effect, check_read, passed_on
from fed.config.explain import unknown
from fed.config.groups import PrivacySettings
from fed.config.schema import OPEN_GROUPS, Config
from fed.config.values import check_values


@dataclass(frozen=True)
class Request:
    """A checked configuration and the keys that were typed to get it."""

    config: Config
    given: frozenset[str]  # keys typed on the command line


def checked(composed: DictConfig, overrides: Sequence[str], choices: Mapping[str, str | None]) -> Request:
    """Return the composed configuration as plain values, with the values that `mode` and `engine` imply.

    Args:
        composed: The configuration as Hydra gives it, not yet resolved.
        overrides: The settings as typed, e.g. ["temp=1", "strategy=fedavg"].
        choices: The file chosen for each group.

    Raises:
        ValueError: Naming the value, what was expected, and the way out.
    """
    given = frozenset(re.split("[=@]", override.lstrip("+~"), maxsplit=1)[0] for override in overrides)
    _check_known(composed)
    if composed.client_num_in_total is None:
        raise ValueError(
            "client_num_in_total=null takes all clients of the data, which main.py counts; give a number here"
        )
    typed: Config = OmegaConf.to_object(composed)  # type: ignore[assignment]
    check_values(typed)
    config = _with_implied(typed, given)
    check_combinations(config)
    check_effect(config, given)
    unresolved = {group: OmegaConf.to_container(composed[group]) for group in ("strategy", "partition")}
    check_read(given, unresolved, choices)
    final = config if config.mode == "federated" else _without_federation(config, given)
    return Request(final, given | passed_on(given, unresolved))


def _check_known(composed: DictConfig) -> None:
    """Refuse keys that `+key=value` has added; only parameters of a group's own `_target_` may be added."""
    parts = {"": Config} | {f"{item.name}.": item.type for item in fields(Config) if is_dataclass(item.type)}
    for prefix, schema in parts.items():
        node = composed[prefix.rstrip(".")] if prefix else composed
        for key in sorted(set(map(str, node)) - {item.name for item in fields(schema)}):
            raise ValueError(unknown(prefix + key))
    for group in OPEN_GROUPS:
        if "_target_" not in composed[group]:
            raise ValueError(f"{group} has no _target_; choose a file of config/{group}/ or give {group}._target_")


def _with_implied(config: Config, given: frozenset[str]) -> Config:
    if config.alpha is None:
        is_fedpo = config.mode == "federated" and config.strategy["_target_"] == "server.strategies.FeDPO"
        config = replace(config, alpha=1.0 if is_fedpo else 0.0)
    if config.engine == "flower" and "privacy.seeded_noise" not in given:
        config = replace(config, privacy=replace(config.privacy, seeded_noise=False))
    return config


def _without_federation(config: Config, given: frozenset[str]) -> Config:
    """Return the settings of plain DPO, one client at a time: no weights, no decay, an optimizer that is never reset.

    A strategy is still asked for: it passes on the weights of the only client.
    """
    one_client = {"min_train_nodes": 1, "min_evaluate_nodes": 1, "min_available_nodes": 1, "fraction_evaluate": 0.0}
    return replace(
        config,
        strategy={"_target_": "server.strategies.StreamingFedAvg", **one_client},
        privacy=PrivacySettings(),
        client_optimizer=config.client_optimizer if "client_optimizer" in given else "persist",
    )
