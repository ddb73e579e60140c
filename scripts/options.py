"""Options of the scripts: NAME=VALUE on the command line, read into a dataclass."""

from collections.abc import Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fed.config.explain import in_words, nearest
from fed.config.meaning import shown

Options = TypeVar("Options")
Default = TypeVar("Default")
HH = Path(__file__).resolve().parents[2] / "shared" / "data" / "hh" / "harmless-base-test.jsonl.gz"  # if it is there
NUMBERS = "whole numbers, [1,2]"


def option(default: Default, meaning: str) -> Default:
    """Return the dataclass field of an option with its meaning, which `described` lists."""
    if isinstance(default, list):
        return cast(Default, field(default_factory=default.copy, metadata={"meaning": meaning}))
    return field(default=default, metadata={"meaning": meaning})


def described(kind: type) -> list[tuple[str, str]]:
    """Return each option of the dataclass `kind` with its default, as typed, and its meaning."""
    return [(f"{item.name}={shown(getattr(kind(), item.name))}", item.metadata["meaning"]) for item in fields(kind)]


def read(kind: type[Options], arguments: Sequence[str]) -> Options:
    """Return the options that the arguments give; defaults are those of the dataclass `kind`.

    A list may be typed without its brackets, and text without quotes. Of an option that is given twice the last value
    counts.

    Raises:
        ValueError: If an option is unknown or its value is of the wrong type.
    """
    types = get_type_hints(kind)
    found = OmegaConf.structured(kind)
    for argument in arguments:
        name, equals, text = argument.partition("=")
        if name not in types or not equals:
            known = ", ".join(f"{known}=" for known in types)
            raise ValueError(f"unknown option {argument}; expected {known}{nearest(name, types)}")
        if _is_list(types[name]) and not text.startswith(("[", "null")):
            argument = f"{name}=[{text}]"
        try:
            given = OmegaConf.create({name: text}) if _is_text(types[name], text) else OmegaConf.from_cli([argument])
            found = OmegaConf.merge(found, given)
            OmegaConf.to_object(found)
        except (OmegaConfBaseException, YAMLError) as error:
            raise ValueError(f"{name}={text} is of the wrong type; expected {_words(types[name])}") from error
    options: Options = OmegaConf.to_object(found)  # type: ignore[assignment]
    return options


def _words(kind: Any) -> str:
    return NUMBERS if kind == list[int] else in_words(kind)


def _is_text(kind: Any, text: str) -> bool:
    """Return True if the value is text as it is typed, also where YAML would make something else of it."""
    return str in (kind, *get_args(kind)) and not _is_list(kind) and text != "null" and "${" not in text


def _is_list(kind: Any) -> bool:
    return any(get_origin(part) is list for part in (kind, *get_args(kind)))


def split(kind: type, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide the arguments into those that are options of the dataclass `kind` and all others."""
    names = {field.name for field in fields(kind)}
    own = [argument for argument in arguments if argument.partition("=")[0] in names]
    return own, [argument for argument in arguments if argument not in own]


def no_folder(**files: str | None) -> None:
    """Refuse names of folders where files are to be written.

    Raises:
        ValueError: Naming the option.
    """
    for name, file in files.items():
        if file is not None and Path(file).is_dir():
            raise ValueError(f"{name}={file} is a folder; give a file")


def at_least(least: int, **values: int | None) -> None:
    """Refuse whole numbers that are too small; None, which stands for none, is not.

    Raises:
        ValueError: If a value is less than `least`.
    """
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name}={value} is too small; expected a whole number of at least {least}")
