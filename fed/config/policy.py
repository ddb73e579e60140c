"""The policy of a node: what its owner lets a run do there. Without a file, a run sets hyper-parameters only."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fed.config import choices
from fed.config.combinations import check_combinations
from fed.config.conditions import ABOVE_0, AT_LEAST_1
from fed.config.explain import explain, in_one_line, listed, nearest
from fed.config.meaning import key, value_of
from fed.config.schema import Config
from fed.config.values import check_values
from fed.errors import Refused

DIGEST = "@sha256:"
# Keys that name a model, or a part of one, and keys that name a type of numbers.
OF_THE_MODEL = tuple(
    f"model.{name}" for name in ("name_or_path", "tokenizer_name_or_path", "gguf_file", "archive", "adapter")
)
OF_TYPES = ("model.policy_dtype", "model.reference_dtype", "model.fsdp_policy_mp", "precision", "wire_dtype")


@dataclass
class NodePolicy:
    """The limits of a run at a node. Each field is a key of the YAML file that `--node-config policy=` names."""

    models: list[str] = key(
        [],
        "Models that a run may name, besides `demo` and the node's own `model.*`: directories and hub names. "
        "`NAME@sha256:DIGEST` allows weights of this digest only.",
    )
    trust_remote_code: bool = key(False, "Let a run ask for the Python code that lies beside a model's weights.")
    client_mods: list[str] = key([], "Dotted paths of mods that a run may name.")
    losses: list[str] = key([], "Dotted paths of losses that a run may name, besides those of `config/loss/`.")
    chat_templates: list[str] = key(
        [], "Files with chat templates that a run may name; `none` and the tokenizer's own always."
    )
    columns: list[str] = key(
        [], "Columns of the node's data that a run may name in `columns.*` and `holdout_by`, besides the usual fields."
    )
    dtypes: list[str] = key(["float32", "bfloat16"], "Types of numbers that a run may compute in or send.")
    max_steps: int = key(10_000, "Most optimizer steps of a round: `local_steps`.", AT_LEAST_1)
    max_epochs: int = key(100, "Most passes over the pairs in a round: `local_epochs`.", AT_LEAST_1)
    max_pairs: int = key(
        256,
        "Most pairs that are computed at once: `batch_size / gradient_accumulation_steps` and `eval_batch_size`.",
        AT_LEAST_1,
    )
    max_tokens: int = key(131_072, "Most tokens that are computed at once: `max_tokens_per_step`.", AT_LEAST_1)
    max_seconds: float = key(
        86_400.0, "Most seconds of a round's training; then the node answers with a failure.", ABOVE_0
    )


def read_policy(path: str | None) -> NodePolicy:
    """Read the owner's file; None: the defaults.

    Raises:
        ValueError: If it cannot be read, has a key that is none, or a value of the wrong type or out of range.
    """
    if path is None:
        return NodePolicy()
    try:
        found = OmegaConf.load(path)
        _check_entries(found)
        policy: NodePolicy = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(NodePolicy), found))  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise ValueError(f"policy={path} cannot be read: {explain(str(error))}") from error
    except Exception as error:  # a damaged file makes the reader raise anything
        raise ValueError(f"policy={path} cannot be read: {in_one_line(str(error))}") from error
    for item in fields(NodePolicy):
        limits, value = item.metadata["key"].limits, getattr(policy, item.name)
        if limits is not None and not limits.hold(value):  # infinity and NaN are out of every range
            raise ValueError(f"policy={path}: {item.name}={value} is out of range; expected {limits.text}")
    return policy


def _check_entries(found: Any) -> None:
    """Refuse unknown keys, and values that OmegaConf would take for something else: ??? for a default, 1 for "1".

    Raises:
        ValueError: Naming the key.
    """
    usual = NodePolicy()
    known = [item.name for item in fields(NodePolicy)]
    for name in map(str, found):
        if name not in known:
            raise ValueError(f"{name} is no key of a policy; expected {listed(known)}{nearest(name, known)}")
        value = OmegaConf.select(found, name, throw_on_missing=True)
        if isinstance(getattr(usual, name), list) and not isinstance(value, ListConfig):
            raise ValueError(f"{name} is no list; write {name}: [{value}]")
        for item in value if isinstance(value, ListConfig) else ():
            if not isinstance(item, str):
                raise ValueError(f"{name} has {item}, which is no text; put it in quotes")


def check_allowed(policy: NodePolicy, config: Config, own: Collection[str]) -> None:
    """Check the settings of a run against the owner's policy, before anything is loaded or imported.

    Args:
        policy: The node's policy.
        config: The run's settings, with those of the node.
        own: Keys that the node's configuration sets itself.

    Raises:
        Refused: Naming the key that reaches too far, is out of its range, or does not go with another.
    """
    try:
        check_values(config)
        check_combinations(config)
    except ValueError as error:  # of the run's settings, not of the owner's data
        raise Refused(str(error)) from error
    for name in OF_THE_MODEL:
        if name not in own:
            _check(name, [value_of(config, name)], ["demo", *_models(policy)], "models")
    _check_code(policy, config)
    _check("client_mods", config.client_mods, policy.client_mods, "client_mods")
    _check("loss._target_", [config.loss["_target_"]], [*choices.targets("loss"), *policy.losses], "losses")
    if "chat_template" not in own:
        _check("chat_template", [config.chat_template], ["none", *policy.chat_templates], "chat_templates")
    for name in ("holdout_by", *(f"columns.{item.name}" for item in fields(config.columns))):
        if name not in own:
            _check(
                name, [value_of(config, name)], ["prompt", "chosen", "rejected", "group", *policy.columns], "columns"
            )
    for name in OF_TYPES:
        _check(name, [value_of(config, name)], policy.dtypes, "dtypes")
    _check_amounts(policy, config, own)


def check_weights(policy: NodePolicy, config: Config, own: Collection[str], digest: str) -> None:
    """Check the SHA-256 of loaded weights, where the policy names one for the model.

    Raises:
        Refused: If it is another.
    """
    name = config.model.name_or_path
    wanted = None if "model.name_or_path" in own else _models(policy).get(str(name))
    if wanted is not None and digest != wanted:
        raise Refused(_refusal("model.name_or_path", name, f"models: [{name}{DIGEST}{digest}]"))


def _check_code(policy: NodePolicy, config: Config) -> None:
    """Check whether code beside the weights may run; it would run before their digest can be known."""
    wanted = config.model.trust_remote_code
    _check("model.trust_remote_code", [wanted], [policy.trust_remote_code], "trust_remote_code")
    if wanted and _models(policy).get(str(config.model.name_or_path)) is not None:
        raise Refused(_refusal("model.trust_remote_code", wanted, f"models: [{config.model.name_or_path}]"))


def _check_amounts(policy: NodePolicy, config: Config, own: Collection[str]) -> None:
    """Check what is computed at once and in a round. Nothing is compared with the data, whose size would show."""
    by_tokens = config.max_tokens_per_step is not None
    pairs = None if by_tokens else config.batch_size // config.gradient_accumulation_steps
    wanted: dict[str, tuple[int | None, str]] = {
        "local_steps": (config.local_steps, "max_steps"),
        "local_epochs": (config.local_epochs if config.local_steps is None else None, "max_epochs"),
        "max_tokens_per_step": (config.max_tokens_per_step, "max_tokens"),
        "batch_size": (pairs, "max_pairs"),
        "eval_batch_size": (None if "eval_batch_size" in own else config.eval_batch_size, "max_pairs"),
    }
    for name, (found, entry) in wanted.items():
        most = getattr(policy, entry)
        if found is not None and found > most:
            raise Refused(_refusal(name, value_of(config, name), f"{entry}: {found}, which is {most} now"))


def _models(policy: NodePolicy) -> dict[str, str | None]:
    """Return the models that a run may name, with the digest of the weights that each must have, if any."""
    parts = (entry.partition(DIGEST) for entry in policy.models)
    return {name: digest or None for name, _, digest in parts}


def _check(name: str, wanted: Sequence[Any], allowed: Sequence[Any], entry: str) -> None:
    for value in wanted:
        if value is not None and value is not False and value not in allowed:
            raise Refused(_refusal(name, value, entry))


def _refusal(name: str, value: object, entry: str) -> str:
    return f"{name}={value} reaches further than this node's policy; its owner may allow it with {entry}"
