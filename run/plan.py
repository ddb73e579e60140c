"""Everything that a run needs, loaded and complete, in one value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flwr.clientapp.typing import Mod
from flwr.serverapp.strategy import Strategy

from clients.app import ClientPairs
from clients.settings import LocalSettings
from fed.config.schema import Config
from fed.data.examples import Example
from fed.data.tokens import Cuts
from fed.distributed.ranks import Mesh
from fed.distributed.stop import Stop
from fed.model.evaluation import Loss
from fed.model.policy import Policy
from feedback.judging import Judge
from run.data import OwnedRows


@dataclass(frozen=True)
class Objective:
    """A loss, and what training and evaluation must know about it."""

    loss: Loss
    beta: float  # scales reported rewards
    supervised: bool  # the loss reads chosen responses only
    by_pair: bool  # the loss of a pair does not depend on the pairs beside it
    scores: bool = False  # the loss reads the scores of a reward model


@dataclass(frozen=True)
class Pairs:
    """The tokenized pairs of a run by owner, without their reference column."""

    rows: OwnedRows  # the rows that they were made from
    cuts: Cuts  # what became of rows on their way to token ids
    validation: Sequence[Example]  # the server's
    test: Sequence[Example]
    clients: Sequence[ClientPairs]  # empty if clients elsewhere have data of their own
    holders: Sequence[ClientPairs]  # the clients of a federation over these pairs, also in mode=centralized


@dataclass(frozen=True)
class Machine:
    """The processes of a run, and the way they compute."""

    mesh: Mesh
    cpu: str  # threads, memory and library, in words
    library: str | None  # multiplies float32 matrices on a CPU; None: there are none


@dataclass(frozen=True)
class Plan:
    """Everything that a run needs, checked before anything is written."""

    config: Config
    given: frozenset[str]  # keys that were typed
    machine: Machine
    policy: Policy
    objective: Objective
    pairs: Pairs
    mods: Sequence[Mod]  # of the clients
    make_strategy: Callable[[], Strategy]  # a strategy keeps state, so each federation gets its own
    judge: Judge | None = None  # of the clients' fresh pairs; None: they train on the pairs of the data

    @property
    def shared_policy(self) -> Policy:
        """The policy as all processes of the run use it, to share the pairs of an evaluated list.

        If the run is asked to stop, it stops between two batches.
        """
        mesh = self.machine.mesh
        ranks = mesh.groups if self.policy.root is None else mesh.world
        return replace(self.policy, ranks=ranks, between=Stop(mesh.world).check)

    @property
    def client_policy(self) -> Policy:
        """The policy as the processes that train one client use it."""
        return replace(self.policy, between=Stop(self.machine.mesh.own).check)

    @property
    def num_clients(self) -> int:
        """The number of clients of the federation, which may be elsewhere."""
        return len(self.pairs.clients) or self.config.num_clients

    @property
    def clients_per_round(self) -> int:
        """The number of clients that train in a round."""
        return min(self.config.clients_per_round or self.num_clients, self.num_clients)

    @property
    def meets_all(self) -> bool:
        """True if every client trains in every round, as far as the settings tell."""
        return self.clients_per_round == self.num_clients


def local_settings(plan: Plan) -> LocalSettings:
    """Return the settings of every client's training."""
    config, objective = plan.config, plan.objective
    assert config.alpha is not None  # the configuration's checks chose it
    return LocalSettings(
        loss=objective.loss,
        beta=objective.beta,
        supervised=objective.supervised,
        by_pair=objective.by_pair,
        optimizer=config.optimizer,
        lr=config.lr,
        warmup_steps=config.warmup_steps,
        warmup_ratio=config.warmup_ratio,
        warmup_restarts=config.warmup_restarts,
        max_grad_norm=config.max_grad_norm,
        batch_size=config.batch_size,
        max_tokens_per_step=config.max_tokens_per_step,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        eval_batch_size=config.eval_batch_size,
        local_epochs=config.local_epochs,
        local_steps=config.local_steps,
        eval_every=config.eval_every,
        do_first_eval=config.do_first_eval,
        alpha=config.alpha,
        anchor_norm=config.anchor_norm,
        decay_target=config.decay_target,
        client_optimizer=config.client_optimizer,
        reshuffle=config.reshuffle,
        seed=config.seed,
    )
