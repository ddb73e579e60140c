"""The way a policy is asked: with the chat template and the lengths of its run, unless the user says otherwise."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fed.config.schema import Config
from fed.data.chat import ChatSettings, read_template
from fed.data.prompts import prompt_ids, turn_ends
from fed.data.rows import HUMAN, Preference, Skip
from fed.data.tokens import Lengths
from fed.model.policy import Policy
from feedback.policies import Found

LONGEST_PROMPT = 1024  # tokens, of a policy whose run is not known


@dataclass(frozen=True)
class Asking:
    """The way prompts become token ids, and the ends of a response.

    Attributes:
        chat: How conversations become text.
        lengths: What a prompt is cut to.
        stop: Tokens that end a response, besides end-of-text.
        stop_strings: Texts that end a response and are no part of it.
    """

    chat: ChatSettings
    lengths: Lengths
    stop: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    def ids(self, policy: Policy, rows: Sequence[Preference]) -> list[list[int] | Skip]:
        """Return the token ids of the rows' prompts, or why they have none."""
        return prompt_ids(rows, policy.tokenizer, lengths=self.lengths, chat=self.chat)

    def text(self, policy: Policy, response: Sequence[int]) -> str:
        """Return what a response says: without special tokens, and up to the first of the stop strings."""
        return until(policy.tokenizer.decode(response, skip_special_tokens=True), self.stop_strings)


def until(text: str, stop_strings: Sequence[str]) -> str:
    """Return the text up to the first of the strings."""
    return text[: min((place for stop in stop_strings if (place := text.find(stop)) >= 0), default=len(text))]


@dataclass(frozen=True)
class Wanted:
    """The wishes of the user; None: as the policy's run had it.

    Attributes:
        chat_template: A file, or "none".
        system_prompt: A system text before conversations without one.
        text_as_chat: Prompts that are text become conversations.
        max_prompt_length: Tokens of the longest prompt.
        stop_strings: Texts that end a response.
    """

    chat_template: str | None = None
    system_prompt: str | None = None
    text_as_chat: bool | None = None
    max_prompt_length: int | None = None
    stop_strings: tuple[str, ...] = ()


def how_to_ask(found: Found, policy: Policy, wanted: Wanted, max_new_tokens: int) -> Asking:
    """Return how to ask the policy. Its tokenizer gets the chat template that is asked for.

    A policy whose run is not known is asked through its tokenizer's chat template, if it has one.

    Raises:
        ValueError: If a template cannot be read or rendered.
    """
    config, tokenizer = found.config or Config(), cast(Any, policy.tokenizer)
    template = set_template(found, policy, wanted)
    has_template = template != "none" and bool(getattr(tokenizer, "chat_template", None))
    chat = _chat(config, wanted, template, text_as_chat=has_template if found.config is None else config.text_as_chat)
    longest = _longest_prompt(found, policy, wanted, max_new_tokens)
    lengths = Lengths(longest + max_new_tokens, longest, config.truncation)
    return Asking(chat, lengths, turn_ends(tokenizer, chat) if has_template else (), wanted.stop_strings)


def longest_read(found: Found, wanted: Wanted, max_new_tokens: int) -> int:
    """Return the tokens of the longest prompt with its response, as far as the model's positions are not known yet."""
    return _wanted_prompt(found, wanted) + max_new_tokens


def _wanted_prompt(found: Found, wanted: Wanted) -> int:
    if wanted.max_prompt_length is not None:
        return wanted.max_prompt_length
    return LONGEST_PROMPT if found.config is None else found.config.max_prompt_length


def _longest_prompt(found: Found, policy: Policy, wanted: Wanted, max_new_tokens: int) -> int:
    """Return the tokens of the longest prompt: as wanted, else as the run had it, else as many as the model can read.

    Raises:
        ValueError: If the model has fewer positions.
    """
    longest = _wanted_prompt(found, wanted)
    positions = getattr(policy.model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None or longest + max_new_tokens <= positions:
        return longest
    if wanted.max_prompt_length is None and found.config is None and max_new_tokens < positions:
        return int(positions - max_new_tokens)
    raise ValueError(
        f"max_new_tokens={max_new_tokens} behind a prompt of {longest} tokens needs more than the model's {positions} "
        "positions; lower it, or max_prompt_length="
    )


def how_to_read(found: Found, policy: Policy, wanted: Wanted, max_length: int) -> Asking:
    """Return how the policy reads pairs of at most `max_length` tokens. Its tokenizer gets the chat template.

    Pairs that are text stay text, unless the run had it otherwise.

    Raises:
        ValueError: If a template cannot be read, or a length does not fit.
    """
    config = found.config or Config()
    chat = _chat(config, wanted, set_template(found, policy, wanted), text_as_chat=config.text_as_chat)
    prompt = max_length // 2 if found.config is None else config.max_prompt_length
    prompt = prompt if wanted.max_prompt_length is None else wanted.max_prompt_length
    return Asking(chat, Lengths(max_length, prompt, config.truncation))


def _chat(config: Config, wanted: Wanted, template: str | None, *, text_as_chat: bool) -> ChatSettings:
    """Return how conversations become text: as the user wants it, else as the run had it."""
    as_chat = text_as_chat if wanted.text_as_chat is None else wanted.text_as_chat
    system = config.system_prompt if wanted.system_prompt is None else wanted.system_prompt
    return ChatSettings(template, config.chat_template_kwargs or {}, system, as_chat)


def set_template(found: Found, policy: Policy, wanted: Wanted) -> str | None:
    """Give the policy's tokenizer the chat template that is asked for, and return the setting that names it."""
    if wanted.chat_template is None:
        return None if found.config is None else found.config.chat_template
    if wanted.chat_template != "none":
        cast(Any, policy.tokenizer).chat_template = read_template(wanted.chat_template)
    return wanted.chat_template


def marked(rows: Iterable[Preference]) -> bool:
    """Return True if a prompt is text with HH's markers, whose next turn of the human ends a response."""
    return any(isinstance(row.prompt, str) and HUMAN.strip() in row.prompt for row in rows)


def columns_of(row: Preference) -> dict[str, str]:
    """Return the columns of a row beside its prompt and responses, the group among them if it has one."""
    columns = dict(zip(row.extra.names, row.extra.values, strict=True))
    return {**columns, "group": row.group} if row.group else columns


def as_json(row: Preference) -> dict[str, Any]:
    """Return a row's prompt as a record of data: text, or a list of messages, with their tools if there are any."""
    if isinstance(row.prompt, str):
        return {"prompt": row.prompt}
    turns = row.prompt.turns
    messages = [{"role": t.role, "content": t.content, **(json.loads(t.more) if t.more else {})} for t in turns]
    return {"prompt": messages, **({"tools": json.loads(row.prompt.tools)} if row.prompt.tools else {})}
