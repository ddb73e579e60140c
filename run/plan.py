"""All that a run needs, in one value, and the checks of it that need loaded data."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy

from clients.app import ClientPairs
from clients.settings import LocalSettings
from fed.config.schema import Config
from fed.data.rows import Preference
from fed.data.splits import Split
from fed.data.tokens import Example
from fed.distributed.ranks import Mesh
from fed.distributed.stop import Stop
from fed.model.evaluation import Loss
from fed.model.policy import Policy
from fed.model.references import with_reference
from server.traits import asks


@dataclass(frozen=True)
class Plan:
    """Everything a run needs, checked, before anything is written."""

    config: Config
    split: Split
    skipped: dict[str, int]  # rows left out while loading, by reason
    policy: Policy
    loss: Loss
    supervised: bool  # the loss reads chosen responses only
    by_pair: bool  # the loss of a pair is the same whichever pairs stand beside it
    make_strategy: Callable[[], Strategy]  # a strategy keeps state, so each federation gets its own
    mods: list[Any]
    tokens: Callable[[Sequence[Preference]], list[Example]]
    validation: list[Example]
    test: list[Example]
    clients: list[ClientPairs]  # none where they have data of their own that this process does not see
    holders: list[ClientPairs]  # who would be the clients of a federation over these pairs
    cpu: str  # threads, memory and library, in words
    library: str | None  # what multiplies float32 matrices on a CPU
    given: frozenset[str]  # keys that were typed
    mesh: Mesh  # the processes of the run

    @property
    def everyone(self) -> Policy:
        """The policy where not only the processes of a group share the pairs: all do that hold other weights.

        A run that is asked to stop does so between two of its batches.
        """
        ranks = self.mesh.groups if self.policy.root is None else self.mesh.world
        return replace(self.policy, ranks=ranks, between=Stop(self.mesh.world).check)

    @property
    def meets_all(self) -> bool:
        """Whether every client here trains in every round, as far as the settings tell."""
        return self.clients_per_round == self.num_clients

    @property
    def beta(self) -> float:
        """What rewards are scaled by."""
        return float(self.config.loss.get("beta", 1.0))

    @property
    def num_clients(self) -> int:
        """Clients of the federation, which may be elsewhere."""
        return len(self.clients) or self.config.client_num_in_total

    @property
    def clients_per_round(self) -> int:
        """Clients that train in a round."""
        return min(self.config.clients_per_round or self.num_clients, self.num_clients)

    def pairs(self, client_id: int) -> ClientPairs:
        """The pairs of a client whose rows are here, tokenized now."""
        rows = self.split.clients[client_id]
        return ClientPairs(self.tokens(rows.train), self.tokens(rows.held_out))


def local_settings(plan: Plan) -> LocalSettings:
    """The keys of the configuration that local training knows under the same name."""
    names = LocalSettings.__dataclass_fields__.keys() & Config.__dataclass_fields__.keys() - {"loss"}
    same = {name: getattr(plan.config, name) for name in names}
    return LocalSettings(loss=plan.loss, beta=plan.beta, supervised=plan.supervised, by_pair=plan.by_pair, **same)


def references(plan: Plan, model: str, policy: Policy | None = None) -> Callable[..., list[Example]]:
    """Return `with_reference` as this run uses it, for a model of that hash; `policy` replaces `plan.everyone`."""
    return functools.partial(
        with_reference,
        policy or plan.everyone,
        batch_size=plan.config.eval_batch_size,
        cache=Path(plan.config.cache_dir) / "reference",
        weights_hash=model,
    )


def check_scoring(plan: Plan, strategy: Strategy) -> None:
    """Refuse a strategy that weighs clients by accuracy where there are no pairs to score them on."""
    config = plan.config
    if asks(strategy, "fraction_evaluate") or config.accuracy_on == "client":
        asked = "accuracy_on=client" if config.accuracy_on == "client" else "strategy.fraction_evaluate > 0"
        without = [k for k, client in enumerate(plan.clients) if not client.held_out]
        if without:
            raise ValueError(
                f"{asked} but client {without[0]} has no held-out pairs ({len(without)} such clients); "
                f"raise client_eval_fraction={config.client_eval_fraction} or lower client_num_in_total"
            )
    if config.accuracy_on == "test" and not plan.test:
        raise ValueError("accuracy_on=test but there are no test pairs; give datasets, or use accuracy_on=client")
    if config.accuracy_on == "server" and not plan.validation:
        raise ValueError(f"accuracy_on=server but {_no_pairs(config)}, or use accuracy_on=client")


def check_decay(plan: Plan, strategy: Strategy) -> None:
    """Refuse a decay that would change nothing."""
    if asks(strategy, "needs_server_accuracy") and not plan.validation:
        raise ValueError(
            "the strategy decays clients that do not beat the server's accuracy on its own pairs, but "
            f"{_no_pairs(plan.config)}, or use strategy=fedpo decay_rate=1"
        )


def _no_pairs(config: Config) -> str:
    """Why the server has nothing to validate on, and what gives it something."""
    if not config.datasets:
        return "datasets=[] leaves the server no pairs; give it a data set"
    return f"server_fraction={config.server_fraction} leaves the server no pairs; raise it"


def check_lengths(plan: Plan, examples: Iterable[Example]) -> None:
    """Positions a model was not made for are an index error in some and nonsense in others.

    Raises:
        ValueError: If an example has more tokens.
    """
    positions = getattr(plan.policy.model.config, "max_position_embeddings", None)
    longest = max((example.length for example in examples), default=0)
    if positions is not None and longest > positions:
        raise ValueError(
            f"max_length={plan.config.max_length} allows pairs of {longest} tokens but the model has {positions} "
            f"positions; use max_length={positions} and a smaller max_prompt_length"
        )
