"""Checks of the command line before Hydra composes it: mistakes that Hydra would accept, and secrets."""

import os
import re
from collections.abc import Sequence
from typing import NoReturn

from hydra._internal.utils import get_args_parser  # the parser of hydra.main, which would print its usage

from fed.config.explain import malformed
from fed.config.schema import GROUPS, PRESETS, keys

# What is typed is kept in config.yaml and environment.json: a secret must not be there.
SECRET = (
    r"((?<![a-z0-9])(?:[a-z0-9]+_)*(?:api_?key|access_?key|private_?key|secret(?:_?key)?|password|passwd|passphrase"
    r"|credentials?|(?:api|access|auth|bearer|hf|hub)_token)|(?<![a-z0-9_])token)"
)
SECRET_SETTING = re.compile(SECRET + r"['\"]?\s*[=:]|\$\{\s*oc\.env\s*:\s*" + SECRET + r"\s*[,}]", re.IGNORECASE)
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
    _check_flags(arguments)
    for argument in arguments:
        key, equals, value = argument.partition("=")
        name = key.lstrip("+~")
        if equals and not name:
            raise ValueError(malformed(argument))
        if name in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra.job.chdir"):
            raise ValueError(f"{name} is refused: a run writes to output_dir/exp_name/date_time; use output_dir")
        if key.startswith("~") and name in keys():
            raise ValueError(f"{argument} is refused: a key cannot be removed; leave it out to get its default")
        if equals and name in (*GROUPS, PRESETS) and re.match(r"$|null$|true$|false$|\d+$|[\[{]", value, re.IGNORECASE):
            raise ValueError(f"{argument} is refused; expected the name of one file in config/{name}/, without .yaml")


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


def _check_flags(arguments: Sequence[str]) -> None:
    """Refuse flags that Hydra does not know, and the one that would run the code of a pickle."""

    def refuse(message: str) -> NoReturn:
        raise ValueError(f"{message}; python main.py --help lists the options")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    if parser.parse_args(list(arguments)).experimental_rerun is not None:
        raise ValueError("--experimental-rerun is refused: it loads a pickle, which can run code; use resume=RUN_DIR")
