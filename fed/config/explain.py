"""Messages about the command line, in one line that names the way out."""

import difflib
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_origin

from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from fed.config import choices
from fed.config.meaning import TYPE_WORDS
from fed.config.quoting import requoted
from fed.config.schema import GROUPS, OPEN_GROUPS, PRESETS, keys, kinds_of

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
    if isinstance(error, OverrideParseException):
        return malformed(error.override)
    if isinstance(error, HydraException | OmegaConfBaseException):
        return explain(f"{error}\n{error.__cause__ or ''}")
    return str(error)


def in_one_line(message: str) -> str:
    """Return the message without line breaks. Spaces stay: a setting that it advises may hold several in a row."""
    return " ".join(filter(None, map(str.strip, message.splitlines())))


def explain(message: str) -> str:
    """Rewrite the message of an exception of Hydra's or OmegaConf's as one line that names the way out."""
    full_key = re.search(r"full_key: (\S+)", message)
    message = re.sub(r"(?m)^\s*(full_key|object_type|reference_type|Set the|See https).*$", "", message)
    text = " ".join(message.split())
    if found := re.search(
        r"Could not find '(.+?)/([^'/]*)'(?: Available options in '\w+': (.*?) Config search)?", text
    ):
        return _no_choice(found.group(1), found.group(2), (found.group(3) or "").split())
    if found := re.search(
        r"Error merging override \+*([\w.]+)=(.*?) (?:Value|field|Invalid|Incompatible|Cannot)", text
    ):
        return wrong_type(*found.groups())
    if found := re.search(r"Multiple values for (\w+)", text):
        return f"{found.group(1)} is chosen twice; write {found.group(1)}=name once and without +"
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)' (?:1\.|requires)", text):
        return _several(found.group(1))
    if found := re.search(r"An item is already at '(.*?)'.*?prefix: '(.*)' Or add", text):
        return f"+{found.group(2)} is refused: {found.group(1)} has a value already; write {found.group(2)} without +"
    found = re.search(r"(?:Could not override|Key|key) '\+?([\w.@/]+)'", text)
    if found and ("not in" in text or "override" in text):
        return unknown(found.group(1))
    if found := re.search(r"Cannot find primary config '(.*?)'|Additional config directory '(.*?)' not found", text):
        return f"there is no configuration {found.group(1) or found.group(2)}; leave --config-name and --config-dir out"
    if text.startswith("Interpolation key"):
        return f"{text}; ${{...}} must name a key, e.g. ${{lr}}"
    return f"{full_key.group(1)}: {text}" if full_key and full_key.group(1) not in text else text


def malformed(argument: str) -> str:
    """Return the message about an argument that Hydra's grammar does not read."""
    key, equals, value = argument.partition("=")
    name = key.lstrip("+~")
    if equals and name in (*GROUPS, PRESETS):
        return _no_choice(name, value, choices.names(name))
    if typed := requoted(argument):
        return f"{argument} needs quotes; write {typed}"
    if equals and name in keys():
        return wrong_type(name, value) if value.isprintable() else f"{argument!r} holds characters that do not print"
    if equals and re.fullmatch(r"[A-Za-z_][\w.]*", name):
        return unknown(name)
    return f"{argument!r} is not a setting; expected key=value, without spaces around the equals sign"


def wrong_type(key: str, value: str) -> str:
    """Return the message about a value that is not of its key's type."""
    typed = requoted(f"{key}={value}") if str in kinds_of(key) else None
    way_out = f"; as text it is {typed}" if typed else ""
    return f"{key}={value} is of the wrong type; expected {_expected(key)}{way_out}"


def _no_choice(group: str, name: str, options: Sequence[str]) -> str:
    return f"{group}={name} is unknown; expected {listed(options)}{nearest(name, options)}"


def _several(argument: str) -> str:
    """Return the message about an argument with the values of several runs, typed without --multirun."""
    key, _, value = argument.partition("=")
    kinds = kinds_of(key.lstrip("+"))
    ways = ["add --multirun, as the last word, for several runs"]
    if {str, Any} & {*kinds} and (typed := requoted(f"{key}={value}")):
        ways.append(f"write {typed} for one text")
    if {list[str], Any} & {*kinds} and (typed := requoted(f"{key}=[{value}]")):
        ways.append(f"write {typed} for a list")
    return f"{argument} has several values; {', or '.join(ways)}"


def unknown(key: str) -> str:
    """Return the message about a key that is not in the schema: why it is refused, or a key that is nearly the same."""
    old = difflib.get_close_matches(key, REFUSED, n=1, cutoff=0.85)
    refused = REFUSED.get(key) or REFUSED.get(key.split(".")[0]) or (REFUSED[old[0]] if old else None)
    if refused:
        return f"{key} is refused: {refused}"
    group, _, parameter = key.partition(".")
    found = parameters()
    if key in found:
        return f"{key} belongs to {listed(found[key])}; choose it too: {found[key][0]} {key}=..."
    own = f", and +{key}=... gives your own {group}._target_ a parameter" if group in OPEN_GROUPS and parameter else ""
    near = nearest(key, [*keys(), PRESETS, *found])
    return f"unknown key {key}{near or _its_group(group)}; docs/settings.md lists every key{own}"


def _its_group(group: str) -> str:
    """Return the keys of a group whose keys the schema lists, as a remark."""
    own = [key for key in keys() if key.startswith(f"{group}.")]
    return f"; {group} has {listed(own)}" if own else ""


@functools.cache
def parameters() -> Mapping[str, list[str]]:
    """Return the dotted parameters in the files of the groups whose keys the schema leaves open.

    Returns:
        The choices whose files have it, by parameter: {"partition.alpha": ["partition=dirichlet"]}.
    """
    found: dict[str, list[str]] = {}
    for group in OPEN_GROUPS:
        for path in choices.files(group):
            for key in choices.own(path, group):
                found.setdefault(f"{group}.{key}", []).append(f"{group}={path.stem}")
    return found


def _expected(key: str) -> str:
    """Return the type that the schema wants for a key, in words."""
    kinds = kinds_of(key)
    if not kinds:
        return "another type"
    if is_dataclass(kinds[0]):
        return f"its own keys, e.g. {key}.{fields(kinds[0])[0].name}=..."
    return " or ".join(WORDS.get(kind, "another type") for kind in kinds)


def in_words(kind: Any) -> str:
    """Return the type of a key in words: "a whole number or null"."""
    if get_origin(kind) is list:
        return WORDS[kind]
    return " or ".join(WORDS[part] for part in get_args(kind) or (kind,))


def counted(count: int, thing: str) -> str:
    """Return "1 pair" or "2,000 pairs"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def in_a_row(names: Sequence[str]) -> str:
    """Return "a", "a and b" or "a, b and c"."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def listed(names: Iterable[str]) -> str:
    """Return the choices, with commas."""
    return ", ".join(names)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return " (nearest: NAME)" with the known name that is most like `name`, or "" if none is near.

    Where that one is like it by a word and another by its beginning, both are named: `temperature` may be
    `sample_temperature` or `temp`.

    Points, underscores and capitals make no difference. Near is a name with the same last part, unless `name` belongs
    to a group that is known. Otherwise a name of the same group is near if one of both begins with the other, if they
    share a word, or if difflib's usual measure finds them alike.
    """
    known = [other for other in known if other != name]
    parent, _, last = name.rpartition(".")
    siblings = [other for other in known if other.rpartition(".")[0] == parent]
    same = [other for other in known if _plain(other) == _plain(name)][:1]
    elsewhere = [other for other in known if other.rpartition(".")[2] == last][:1] if not (parent and siblings) else []
    likeness = {other: _likeness(_plain(last), _plain(other.rpartition(".")[2])) for other in siblings or known}
    found = sorted(filter(likeness.get, likeness), key=lambda other: -likeness[other])
    begun = [other for other in found if _begins(_plain(last), _plain(other.rpartition(".")[2]))]
    if elsewhere:  # others only if they say the same word
        of_groups = {other.rpartition(".")[0] for other in elsewhere}
        found = [one for one in found if likeness[one] > 1 and one not in of_groups]
        begun = [one for one in begun if one not in of_groups]
    named = same or [*dict.fromkeys([*elsewhere, *found[:1], *begun[:1]])]
    return f" (nearest: {' or '.join(named)})" if named else ""


def _plain(name: str) -> str:
    return re.sub(r"[._-]+", "_", name.casefold())


def _begins(name: str, other: str) -> bool:
    return min(len(name), len(other)) > 1 and (name.startswith(other) or other.startswith(name))


def _likeness(name: str, other: str) -> float:
    """Return how alike two names of lower case are, 0 if they are not."""
    words = {word.rstrip("s") for word in name.split("_")}
    shared = words & {word.rstrip("s") for word in other.split("_")}
    begins = _begins(name, other)
    ratio = difflib.SequenceMatcher(None, name, other).ratio()
    telling = sum(len(word) > 3 for word in shared)  # not "max" or "num"
    if begins or ratio >= 0.6 or shared == words or telling:
        return ratio + telling + begins
    return 0
