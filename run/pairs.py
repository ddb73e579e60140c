"""The tokenized pairs of a run: of all clients at once, or of each client when it is asked for."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clients.app import ClientPairs
from fed.config.schema import Config
from fed.data.rows import Preference
from fed.data.splits import ClientRows
from fed.data.token_cache import tokenize_once
from fed.data.tokens import Example, tokenize
from fed.errors import Failed
from fed.files import inside
from fed.model.policy import Policy
from fed.tracking import steps
from run.data import OwnedRows
from run.data_checks import check_lengths
from run.plan import Pairs

PART = 4096  # pairs between two lines at least
Tokenize = Callable[[Sequence[Preference]], list[Example]]


def all_pairs(rows: OwnedRows, policy: Policy, config: Config) -> Pairs:
    """Tokenize the pairs of the server, the test and all clients, and print how far this has come."""
    as_tokens = _tokenizer(_Counting(), policy, config)
    validation, test = as_tokens(rows.split.validation), as_tokens(rows.split.test)
    clients = holders = [_client_pairs(client, as_tokens) for client in rows.split.clients]
    if config.mode == "centralized":
        train = [example for client in holders for example in client.train]
        clients = [ClientPairs(train, [example for client in holders for example in client.held_out])]
    return Pairs(*rows, validation, test, clients, holders)


def pairs_on_demand(rows: OwnedRows, policy: Policy, config: Config) -> Pairs:
    """Tokenize the pairs of the server and the test now, and those of a client each time it is asked for.

    Token ids are kept in `cache_dir`, where the process of a client's next message finds them.
    """
    once = functools.partial(tokenize_once, cache=inside(Path(config.cache_dir), "tokens"))
    as_tokens = _tokenizer(once, policy, config)
    validation, test = as_tokens(rows.split.validation), as_tokens(rows.split.test)
    clients = _ClientsOnDemand(rows.split.clients, as_tokens, functools.partial(_check_client, config, policy))
    return Pairs(*rows, validation, test, clients, holders=clients)


class _Counting:
    """`tokenize`, part by part: one call for all pairs would be silent for minutes."""

    def __init__(self) -> None:
        self._count, self._done = steps.Count("tokens of {done} pairs are made"), 0

    def __call__(self, rows: Sequence[Preference], **how: Any) -> list[Example]:
        found: list[Example] = []
        for start in range(0, len(rows), PART):
            found += tokenize(rows[start : start + PART], **how)
            self._count.reached(self._done + len(found))
        self._done += len(rows)
        return found


class _ClientsOnDemand(Sequence[ClientPairs]):
    """The pairs of each client, tokenized and checked each time they are asked for."""

    def __init__(
        self, rows: Sequence[ClientRows], as_tokens: Tokenize, check: Callable[[int, ClientPairs], None]
    ) -> None:
        self._rows, self._as_tokens, self._check = rows, as_tokens, check

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, client_id: int) -> ClientPairs:  # type: ignore[override]  # there are no slices of clients
        pairs = _client_pairs(self._rows[client_id], self._as_tokens)
        self._check(client_id, pairs)
        return pairs


def _tokenizer(tokenize: Callable[..., list[Example]], policy: Policy, config: Config) -> Tokenize:
    return functools.partial(
        tokenize,
        tokenizer=policy.tokenizer,
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
    )


def _client_pairs(rows: ClientRows, as_tokens: Tokenize) -> ClientPairs:
    return ClientPairs(as_tokens(rows.train), as_tokens(rows.held_out))


def _check_client(config: Config, policy: Policy, client_id: int, pairs: ClientPairs) -> None:
    """Refuse a client whose pairs cannot be used.

    Raises:
        ValueError: If a pair is too long.
        Failed: If the client is to be scored on held-out pairs and has none.
    """
    check_lengths(policy, config.max_length, (*pairs.train, *pairs.held_out))
    if config.accuracy_on == "client" and not pairs.held_out:
        raise Failed(f"client {client_id} has too few pairs to hold one out; it needs at least two conversations")
