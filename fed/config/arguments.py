"""Checks of the command line before Hydra composes it: mistakes that Hydra would accept, and secrets."""

import argparse
import os
import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NoReturn

from hydra._internal.utils import get_args_parser  # the parser of hydra.main, which would print its usage
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from fed.config import choices
from fed.config.explain import malformed, unknown
from fed.config.quoting import misread, parsed, requoted
from fed.config.schema import GROUPS, PRESETS, keys, kinds_of

# What is typed is kept in config.yaml and environment.json: a secret must not be there.
SECRET = (
    r"((?<![a-z0-9])(?:[a-z0-9]+_)*(?:api_?key|access_?key|private_?key|secret(?:_?key)?|password|passwd|passphrase"
    r"|credentials?|(?:api|access|auth|bearer|hf|hub)_token)|(?<![a-z0-9_])token)"
)
SECRET_SETTING = re.compile(SECRET + r"['\"]?\s*[=:]|\$\{\s*oc\.env\s*:\s*" + SECRET + r"\s*[,}]", re.IGNORECASE)
COMPLETION = "(install|uninstall|query)=(bash|fish|zsh)"  # what --shell-completion takes
SECRET_VARIABLE = re.compile("(token|secret|password|passwd|(api|access|private|secret)_?key)$", re.IGNORECASE)


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that Hydra would accept silently, or reject without naming them.

    Raises:
        ValueError: Naming the argument, what was expected, and the way out.
    """
    for argument in arguments:
        _check_text(argument)
    flags = [argument.startswith("-") for argument in arguments]
    settings = [place for place, argument in enumerate(arguments) if "=" in argument and not flags[place]]
    for place, argument in enumerate(arguments):
        name = argument.lstrip("-").partition("=")[0]
        if flags[place] and name in (*keys(), *GROUPS, PRESETS):
            raise ValueError(f"{argument} is refused: settings have no dashes; write {argument.lstrip('-')}")
        if flags[place] and settings and settings[0] < place < settings[-1]:
            raise ValueError(f"{argument} stands between settings; put it before the first or after the last")
    for argument in _overrides(arguments):
        _check_setting(argument)


def _check_setting(argument: str) -> None:
    key, equals, value = argument.partition("=")
    name = key.lstrip("+~")
    if name in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.chdir"):
        raise ValueError(f"{name} is refused: a run writes to output_dir/exp_name/date_time; use output_dir")
    if key.startswith("~") and name in keys():
        raise ValueError(f"{argument} is refused: a key cannot be removed; leave it out to get its default")
    if equals and name in (*GROUPS, PRESETS) and re.match(r"$|null$|true$|false$|\d+$|[\[{]", value, re.IGNORECASE):
        raise ValueError(f"{argument} is refused; expected the name of one file in config/{name}/, without .yaml")
    override = parsed(argument) if name else None
    if override is None:
        raise ValueError(malformed(argument))
    if override.is_sweep_override():
        _check_sweep(argument, override)
    elif (becomes := misread(override)) is not None:
        raise ValueError(f"{argument} would be read as {becomes}; write {requoted(argument)}")


def _check_sweep(argument: str, override: Override) -> None:
    """Refuse the values of a sweep that are none, or that no sweeper here can list."""
    name = override.key_or_group
    if override.value_type == ValueType.INTERVAL_SWEEP:
        raise ValueError(
            f"{argument} names no values; expected values, {name}=1,2, or whole numbers, {name}=range(0,3)"
        )
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        files = choices.names(name) if name in (*GROUPS, PRESETS) else []
        values: Sequence[object] = override.value().filter(files)  # type: ignore[union-attr]
    else:
        try:
            values = list(islice(override.sweep_iterator(), 1))
        except (ValueError, HydraException) as error:
            raise ValueError(f"{argument} lists no values: {error}") from error
    if not values:
        raise ValueError(f"{argument} lists no values; expected some, e.g. seed=1,2 or seed=range(0,3)")


def _check_text(argument: str) -> None:
    """Refuse text that cannot be kept in files and names of folders, and secrets, which must not be."""
    try:
        argument.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{argument!a} holds bytes that are not UTF-8 text; use UTF-8 names") from error
    found = SECRET_SETTING.search(argument)
    name = found and (found.group(1) or found.group(2))
    for variable, value in os.environ.items():
        if SECRET_VARIABLE.search(variable) and len(value) >= 8 and value in argument:
            name = variable
    if name:
        raise ValueError(
            f"{name} is refused: settings are kept in config.yaml and environment.json, where no secret belongs; "
            "have your own code read it from the environment"
        )


def _overrides(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that are settings.

    Raises:
        ValueError: If a flag is not Hydra's, is used in a way that Hydra answers with a traceback, or would run the
            code of a pickle.
    """

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; python main.py --help lists the options")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.allow_abbrev = False  # --hel and --vers would get Hydra's own page and version
    found = parser.parse_args(list(arguments))
    if found.help:  # joined with another letter, as in -hm
        refuse("-h is typed by itself")
    if found.experimental_rerun is not None:
        raise ValueError("--experimental-rerun is refused: it loads a pickle, which can run code; use resume=RUN_DIR")
    for name in ("config_name", "config_path", "config_dir", "package"):
        if "=" in (value := getattr(found, name) or ""):
            refuse(f"--{name.replace('_', '-')} needs a name, and {value} is a setting")
    _check_commands(found, refuse)
    overrides: list[str] = found.overrides
    return [] if found.shell_completion else overrides


def _check_commands(found: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> None:
    """Refuse flags that do not work together, or not alone."""
    named = {
        "--run": found.run,
        "--multirun": found.multirun,
        "--cfg": found.cfg,
        "--info": found.info,
        "--shell-completion": found.shell_completion,
        "--hydra-help": found.hydra_help,
    }
    commands = [flag for flag, value in named.items() if value]
    if len(commands) > 1:
        refuse(f"{' and '.join(commands)} cannot be combined; give one of them")
    for flag, value in {"--resolve": found.resolve, "--package": found.package}.items():
        if value and not found.cfg:
            refuse(f"{flag} has no effect without --cfg job")
    if found.package and found.cfg == "job" and not kinds_of(found.package):
        raise ValueError(unknown(found.package))
    if found.hydra_help and found.overrides:
        refuse(f"{found.overrides[0]} has no effect with --hydra-help")
    if found.shell_completion and not any(re.fullmatch(COMPLETION, word) for word in found.overrides):
        refuse("--shell-completion needs install=SHELL, uninstall=SHELL or query=SHELL, with bash, fish or zsh")
    if found.shell_completion and len(found.overrides) > 1:
        refuse("--shell-completion needs nothing beside install=SHELL")
    if found.shell_completion and found.overrides[0].startswith("query") and "COMP_LINE" not in os.environ:
        refuse("query= is what an installed completion asks; use --shell-completion install=SHELL")
