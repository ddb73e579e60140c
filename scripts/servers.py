"""The options by which commands name a served model, and its client."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from scripts.options import at_least, option

if TYPE_CHECKING:
    from feedback.api import Server


@dataclass(frozen=True)
class ServerOptions:
    """The options that name a served model."""

    model: str | None = option(None, "The name under which the model is served.")
    base_url: str | None = option(
        None,
        "Where: http://127.0.0.1:8000/v1; null: OPENAI_BASE_URL, else OpenAI's own. The key comes from OPENAI_API_KEY.",
    )
    timeout: float = option(120.0, "Seconds that one answer may take.")
    retries: int = option(5, "How often a question is asked again that the server could not answer.")
    concurrency: int = option(8, "Questions at a time.")
    cache_dir: str = option(".cache", "Answers are kept in cache_dir/answers, so that none is asked for twice.")
    extra_body: str | None = option(None, 'More fields of each request, as YAML: "{top_k: 40}".')


def check_server(options: ServerOptions) -> None:
    """Check the options.

    Raises:
        ValueError: If no model is named, or a number cannot work.
    """
    if options.model is None:
        raise ValueError("model= is missing: the name under which the server has it, e.g. model=gpt-4o-mini")
    at_least(1, concurrency=options.concurrency)
    at_least(0, retries=options.retries)
    if options.timeout <= 0:
        raise ValueError(f"timeout={options.timeout:g} must be more than 0 seconds")


def server_of(options: ServerOptions) -> Server:
    """Return the server that the options name."""
    from feedback.api import Server

    assert options.model is not None
    cache = Path(options.cache_dir) / "answers"
    return Server(options.model, options.base_url, options.timeout, options.retries, options.concurrency, cache)


def more_of(options: ServerOptions) -> Mapping[str, Any]:
    """Return what `extra_body` adds to each call.

    Raises:
        ValueError: If it is no YAML mapping.
    """
    if options.extra_body is None:
        return {}
    try:
        found = yaml.safe_load(options.extra_body)
        if not isinstance(found, dict):
            raise ValueError(f"it is {type(found).__name__}")
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f'extra_body={options.extra_body:.60} is no mapping; expected "{{name: value}}"') from error
    return {"extra_body": found}
