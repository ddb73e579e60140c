"""Messages about the command line, in one line that names the way out."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fed.config.meaning import TYPE_WORDS
from fed.config.schema import CONFIG_DIR, OPEN_GROUPS, PRESETS, Config, keys

# Keys of the original code bases that are not taken over, and what to use instead.
REFUSED = {
    "n_epochs": "passes are counted per client and round; use local_epochs",
    "n_examples": "training length is set per client and round; use local_steps",
    "local_dirs": "use output_dir for runs and cache_dir for caches",
    "local_run_dir": "runs go to output_dir/exp_name/date_time; use output_dir",
    "fsdp_port": "processes meet at a file and need no port; under torchrun it is --rdzv_endpoint",
    "save_every": "use checkpoint_every, which counts rounds",
    "minimum_log_interval_secs": "every optimizer step is logged",
    "wandb": "curves go to TensorBoard and metrics.jsonl; wandb is not supported",
    "server_not_train": "it did nothing in the original; the server never trains",
    "learning_rate": "use lr",
    "n_clients": "use client_num_in_total",
    "num_clients": "use client_num_in_total",
    "client_num_per_round": "use clients_per_round",
}

WORDS: dict[Any, str] = {**TYPE_WORDS, list[str]: "a list, [a,b]", Any: "text or a list, [a,b]"}


def refusal(error: Exception) -> str:
    """Return the one-line message of refused settings, whether this program, Hydra or OmegaConf refused them."""
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain(f"{error}\n{error.__cause__ or ''}")
    return str(error)


def explain(message: str) -> str:
    """Rewrite the message of an exception of Hydra's or OmegaConf's as one line that names the way out."""
    full_key = re.search(r"full_key: (\S+)", message)
    message = re.sub(r"(?m)^\s*(full_key|object_type|reference_type|Set the|See https).*$", "", message)
    text = " ".join(message.split())
    if found := re.search(
        r"Could not find '(.+?)/([^'/]*)'(?: Available options in '\w+': (.*?) Config search)?", text
    ):
        group, name, options = found.group(1), found.group(2), (found.group(3) or "").split()
        return f"{group}={name} is unknown; expected {listed(options)}{nearest(name, options)}"
    if found := re.search(r"Error parsing override '(.*?)' |LexerNoViableAltException: (.*?)(?: \^|$)", text):
        return malformed(found.group(1) or found.group(2))
    if found := re.search(
        r"Error merging override \+*([\w.]+)=(.*?) (?:Value|field|Invalid|Incompatible|Cannot)", text
    ):
        return f"{found.group(1)}={found.group(2)} is of the wrong type; expected {_expected(found.group(1))}"
    if found := re.search(r"Multiple values for (\w+)", text):
        return f"{found.group(1)} is chosen twice; write {found.group(1)}=name once and without +"
    if found := re.search(r"Ambiguous value for argument '(.*?)' ", text):
        key, _, value = found.group(1).partition("=")
        return f"{found.group(1)} has several values; use {key}=[{value}] for a list or add --multirun for several runs"
    found = re.search(r"(?:Could not override|Key|key) '\+?([\w.]+)'", text)
    if found and ("not in" in text or "override" in text):
        return unknown(found.group(1))
    if text.startswith("Interpolation key"):
        return f"{text}; ${{...}} must name a key, e.g. ${{lr}}"
    return f"{full_key.group(1)}: {text}" if full_key and full_key.group(1) not in text else text


def malformed(argument: str) -> str:
    """Return the message about an argument that is not a setting."""
    return f"{argument!r} is not a setting; expected key=value, special characters quoted as in 'exp_name=\"a=b\"'"


def unknown(key: str) -> str:
    """Return the message about a key that is not in the schema: why it is refused, or the nearest key that exists."""
    refused = REFUSED.get(key) or REFUSED.get(key.split(".")[0])
    if refused:
        return f"{key} is refused: {refused}"
    group = key.split(".")[0]
    own = f", and +{key}=... gives your own {group}._target_ a parameter" if group in OPEN_GROUPS else ""
    near = nearest(key, [*keys(), PRESETS, *group_keys()])
    return f"unknown key {key}{near}; docs/settings.md lists every key{own}"


def group_keys() -> list[str]:
    """Return the dotted parameters in all files of the groups whose keys the schema leaves open."""
    found = set()
    for group in OPEN_GROUPS:
        for path in (CONFIG_DIR / group).glob("*.yaml"):
            node: Any = OmegaConf.to_container(OmegaConf.load(path))
            is_global = "@package _global_" in path.read_text(encoding="utf-8")
            found |= {f"{group}.{key}" for key in (node[group] if is_global else node)}
    return sorted(found)


def _expected(key: str) -> str:
    """Return the type that the schema wants for a key, in words."""
    schema: Any = Config
    for name in key.split("."):
        item = {item.name: item for item in fields(schema)}.get(name) if is_dataclass(schema) else None
        if item is None:
            return "another type"
        schema = item.type
    if is_dataclass(schema):
        return f"its own keys, e.g. {key}.{fields(schema)[0].name}=..."
    return in_words(schema)


def in_words(kind: Any) -> str:
    """Return the type of a key in words: "a whole number or null"."""
    if get_origin(kind) is list:
        return WORDS[kind]
    return " or ".join(WORDS[part] for part in get_args(kind) or (kind,))


def listed(choices: Iterable[str]) -> str:
    """Return the choices, with commas."""
    return ", ".join(choices)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (nearest: NAME)" with the known name that is most like `name`.

    A name with the same last part comes first, then one that begins `name` or that `name` begins, then one spelled
    alike.
    """
    known = list(known)
    parent, _, last = name.rpartition(".")
    same = [other for other in known if other.rpartition(".")[2] == last]
    siblings = [other for other in known if other.rpartition(".")[0] == parent] or known
    begins = [other for other in siblings if len(other) > 1 and (other.startswith(name) or name.startswith(other))]
    alike = difflib.get_close_matches(name, siblings, n=1, cutoff=0)
    found = same or sorted(begins, key=len, reverse=True) or alike
    return f" (nearest: {found[0]})" if found else ""
