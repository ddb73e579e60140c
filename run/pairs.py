"""The tokenized pairs of a run: of all clients at once, or of each client when it is asked for."""

import functools
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from clients.app import ClientPairs
from fed.config.schema import Config
from fed.data.chat import ChatSettings, in_form
from fed.data.examples import Examples
from fed.data.prompts import prompt_ids
from fed.data.rows import Chat, Preference, said
from fed.data.splits import ClientRows
from fed.data.token_cache import tokenize_once
from fed.data.tokens import Cuts, Lengths, Tokenized, tokenize
from fed.errors import Failed
from fed.files import inside, keep_newest
from fed.model.policy import Policy
from fed.tracking import steps
from run.data import OwnedRows
from run.data_checks import check_lengths
from run.plan import Pairs

MANY = 1000  # rows whose token ids are worth a file: fewer are made in less than a second
ENTRIES = 8  # runs whose token ids are kept
Tokenize = Callable[[Sequence[Preference]], Tokenized]


def all_pairs(rows: OwnedRows, policy: Policy, config: Config, *, supervised: bool = False) -> Pairs:
    """Tokenize the pairs of the server, the test and all clients, and print how far this has come.

    With a supervised loss single responses count as pairs; rows of an online run that have no pair are prompts only.

    Raises:
        ValueError: If pairs or prompts cannot be tokenized, or none of a client's to train on is left.
    """
    split = rows.split
    lists = [
        split.validation,
        split.test,
        *(part for client in split.clients for part in (client.train, client.held_out)),
    ]
    every = [row for part in lists for row in part]
    _check_has_conversations(config, every, getattr(policy.tokenizer, "chat_template", None) or "")
    is_online = config.online.judge is not None
    if is_online:
        talks = [row for row in every if isinstance(in_form(row, chat_settings(config)).prompt, Chat)]
        prompt_ids(talks[:1], policy.tokenizer, lengths=lengths_of(config), chat=chat_settings(config))
        lists = [[row for row in part if _is_answered(row, supervised)] for part in lists]
        every = [row for part in lists for row in part]
    found = _tokenizer(policy, config, "tokens_of_runs", most=ENTRIES)(every)
    ends = itertools.accumulate(map(len, lists), initial=0)
    validation, test, *of_clients = (found.part(start, stop) for start, stop in itertools.pairwise(ends))
    clients = holders = list(map(ClientPairs, of_clients[::2], of_clients[1::2]))
    if not is_online:
        _check_any_left(clients, found.cuts)
    if config.mode == "centralized":
        clients = [ClientPairs(Examples.joined(of_clients[::2]), Examples.joined(of_clients[1::2]))]
    return Pairs(rows, found.cuts, validation, test, clients, holders)


def _is_answered(row: Preference, supervised: bool) -> bool:
    """Return True if the row is more than a prompt to the loss."""
    return bool(said(row.chosen)) if supervised else row.rejected is not None


def pairs_on_demand(rows: OwnedRows, policy: Policy, config: Config) -> Pairs:
    """Tokenize the pairs of the server and the test now, and those of a client each time it is asked for.

    Token ids are kept in `cache_dir`, where the process of a client's next message finds them.
    """
    as_tokens = _tokenizer(policy, config, "tokens")
    validation, test = as_tokens(rows.split.validation), as_tokens(rows.split.test)
    clients = _ClientsOnDemand(rows.split.clients, as_tokens, functools.partial(_check_client, config, policy))
    validation.cuts.add(test.cuts)
    return Pairs(rows, validation.cuts, validation.examples, test.examples, clients, holders=clients)


class _ClientsOnDemand(Sequence[ClientPairs]):
    """The pairs of each client, tokenized and checked each time they are asked for."""

    def __init__(
        self, rows: Sequence[ClientRows], as_tokens: Tokenize, check: Callable[[int, ClientPairs], None]
    ) -> None:
        self._rows, self._as_tokens, self._check = rows, as_tokens, check

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, client_id: int) -> ClientPairs:  # type: ignore[override]  # there are no slices of clients
        own = self._rows[client_id]
        pairs = ClientPairs(self._as_tokens(own.train).examples, self._as_tokens(own.held_out).examples)
        self._check(client_id, pairs)
        return pairs


def chat_settings(config: Config) -> ChatSettings:
    """Return how conversations become text."""
    return ChatSettings(
        config.chat_template, config.chat_template_kwargs or {}, config.system_prompt, config.text_as_chat
    )


def lengths_of(config: Config) -> Lengths:
    """Return what the model reads of a pair."""
    return Lengths(config.max_length, config.max_prompt_length, config.truncation)


def _tokenizer(policy: Policy, config: Config, folder: str, most: int | None = None) -> Tokenize:
    """Return what tokenizes rows, with a cache of at most so many entries; a cache with a bound leaves few rows out."""
    tokenizer, chat, lengths = policy.tokenizer, chat_settings(config), lengths_of(config)
    cache = inside(Path(config.cache_dir), folder)

    def as_tokens(rows: Sequence[Preference]) -> Tokenized:
        count = steps.Count("tokens of {done} pairs are made").reached
        if most is not None and len(rows) < MANY:
            return tokenize(rows, tokenizer, lengths=lengths, chat=chat, on_rows=count)
        found = tokenize_once(rows, tokenizer, lengths=lengths, chat=chat, cache=cache, on_rows=count)
        if most is not None:
            keep_newest(cache, most)
        return found

    return as_tokens


def _check_has_conversations(config: Config, rows: Sequence[Preference], template: str) -> None:
    """Refuse settings about conversations where there are none.

    Raises:
        ValueError: Naming the setting.
    """
    chats = [row.prompt for row in rows if isinstance(row.prompt, Chat)]
    if config.text_as_chat and len(chats) == len(rows) > 0:
        raise ValueError("text_as_chat=true has no effect: prompts of the data are conversations; leave it out")
    if config.text_as_chat or chats:
        have_own = len(chats) == len(rows) and all(chat.turns[0].role == "system" for chat in chats)
        if have_own and config.system_prompt is not None:
            raise ValueError(
                "system_prompt has no effect: every conversation of the data begins with a system text; leave it out"
            )
        _check_variables(config, template)
        return
    given = {
        "chat_template": config.chat_template,
        "chat_template_kwargs": config.chat_template_kwargs,
        "system_prompt": config.system_prompt,
        "truncation": config.truncation if config.truncation == "messages" else None,
    }
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name}={value} has no effect: prompts and responses of the data are text; text_as_chat=true makes "
                "conversations of them"
            )


def _check_variables(config: Config, template: str) -> None:
    """Refuse variables that the chat template does not read.

    Raises:
        ValueError: Naming one.
    """
    for name in config.chat_template_kwargs or {}:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ValueError(f"chat_template_kwargs has {name}, which the chat template does not read; leave it out")


def _check_any_left(clients: Sequence[ClientPairs], cuts: Cuts) -> None:
    """Refuse to go on without pairs to train on.

    Raises:
        ValueError: If a client has none.
    """
    for client_id, client in enumerate(clients):
        if not client.train:
            why = ", ".join(f"{count} {reason}" for reason, count in cuts.dropped.items())
            raise ValueError(
                f"client {client_id} has no pair left to train on ({why}); raise max_length, or see why pairs "
                "were dropped"
            )


def _check_client(config: Config, policy: Policy, client_id: int, pairs: ClientPairs) -> None:
    """Refuse a client whose pairs cannot be used.

    Raises:
        ValueError: If a pair is too long.
        Failed: If the client has no pair, or is to be scored on held-out pairs and has none.
    """
    check_lengths(policy, config.max_length, [pairs.train, pairs.held_out])
    if not pairs.train:
        raise Failed(f"client {client_id} has no pair left to train on once its pairs are token ids")
    if config.accuracy_on == "client" and not pairs.held_out:
        raise Failed(f"client {client_id} has too few pairs to hold one out; it needs at least two conversations")
