"""Arguments that Hydra's grammar does not read as they are meant, and what to type in their place."""

import shlex
from contextlib import suppress
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fed.config.schema import kinds_of

PARSER = OverridesParser.create()


def parsed(argument: str) -> Override | None:
    """Return the argument as Hydra reads it; None if its grammar, or that of `${...}` in it, is not kept."""
    try:
        override = PARSER.parse_override(argument)
        if not override.is_sweep_override():
            OmegaConf.create({"value": override.value()})
    except (HydraException, OmegaConfBaseException, RecursionError):
        return None
    return override


def requoted(argument: str) -> str | None:
    """Return what to type in a shell for an argument of key, `=` and a text or a list of texts.

    The advice is tried: Hydra reads it as exactly this text, or these.

    Returns:
        The argument in quotes; None if no quotes make it a setting, or if the schema wants no text there.
    """
    key, equals, text = argument.partition("=")
    kinds = kinds_of(key.lstrip("+~"))
    is_list = text.startswith("[") and text.endswith("]") if Any in kinds else list[str] in kinds
    if not equals or not {Any, str, list[str]} & set(kinds):
        return None
    if is_list:
        meant: Any = [_bare(part.strip()) for part in text.removeprefix("[").removesuffix("]").split(",")]
        value = f"[{','.join(map(_quoted, meant))}]"
    else:
        meant = _bare(text)
        value = _quoted(meant)
    read = parsed(f"{key}={value}")
    if read is None or not "".join(meant).isprintable() or not _is_meant(read, meant):
        return None
    return shlex.quote(f"{key}={value}")


def misread(override: Override) -> str | None:
    """Return the value of a text that Hydra reads as a number or a truth, and so spells otherwise: "1e3" as "1000.0".

    Returns:
        What the text would become; None if it stays as it was typed.
    """
    if override.is_sweep_override() or override.value_type is None or str not in kinds_of(override.key_or_group):
        return None
    value, typed = override.value(), (override.input_line or "").partition("=")[2]
    return str(value) if isinstance(value, bool | int | float) and str(value) != typed else None


def _bare(text: str) -> str:
    """Return the text without quotes around it."""
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def _quoted(text: str) -> str:
    """Return the text in the quotes that it holds least; a `${` that begins no interpolation is escaped."""
    quote = Quote.single if text.count('"') > text.count("'") else Quote.double
    return QuotedString(text if _interpolates(text) else text.replace("${", "\\${"), quote).with_quotes()


def _interpolates(text: str) -> bool:
    """Return True if OmegaConf reads every `${` in the text as the beginning of an interpolation."""
    try:
        OmegaConf.create({"value": text})
    except OmegaConfBaseException:
        return False
    return True


def _is_meant(override: Override, meant: str | list[str]) -> bool:
    """Return True if the value is as meant, either with its interpolations as typed or with none."""
    value = override.value()
    with suppress(OmegaConfBaseException):  # an interpolation that names nothing, which composition tells
        found = OmegaConf.to_object(OmegaConf.create({"value": value}))
        return meant in (value, found["value"])  # type: ignore[index,call-overload]
    return bool(value == meant)
