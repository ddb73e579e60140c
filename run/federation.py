"""One federation of a run: its server app, evaluation and checkpoints, the same wherever its clients run."""

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import Strategy
from rich.console import Console

from fed.checkpoints.checkpointer import Checkpoint, Checkpointer, Stateful
from fed.distributed.shards import Shards
from fed.grids.leader import Evaluate
from fed.model.evaluation import evaluate_pairs
from fed.model.generation import Draws
from fed.model.samples import Sampler, with_different_prompts
from fed.simulation import OnTraffic, Persistence, ServerSide
from fed.tracking.log import Log
from run.folder import Place
from run.online import win_rate_of
from run.plan import Plan
from run.references import ReferencedPairs
from server.app import server_app
from server.evaluate import ServerEvaluation
from server.privacy import ledger_of
from server.state import StrategyState
from server.traits import asks, client_weights
from server.winrate import pool_counts

MODEL_HASH = "model before training (SHA-256)"  # a checkpoint is refused in a run where this value differs


@dataclass(frozen=True)
class Federation:
    """One federation of a run: all clients or, in mode=local, one of them; its strategy and evaluation keep state."""

    plan: Plan
    pairs: ReferencedPairs
    log: Log
    initial: ArrayRecord  # weights before training, or this process's parts of them
    place: Place
    checkpointer: Checkpointer
    checkpoint: Checkpoint | None  # the federation resumes after it; None: it starts with round 1
    console: Console

    @property
    def model_hash(self) -> str:
        """SHA-256 of the model before training."""
        return str(self.checkpointer.run[MODEL_HASH])

    @functools.cached_property
    def strategy(self) -> Strategy:
        """The strategy, which is this federation's own."""
        strategy = self.plan.make_strategy()
        if self.plan.config.online.client_eval_prompts:
            pool_counts(strategy, lambda server_round, rates: self.log.server(server_round, "held-out", rates))
        return strategy

    @functools.cached_property
    def evaluation(self) -> ServerEvaluation:
        """The server's evaluation of the global weights."""
        plan, config, strategy, ledger = self.plan, self.plan.config, self.strategy, ledger_of(self.strategy)
        world, objective = plan.machine.mesh.world, plan.objective
        log = self.log if world.is_first else Log()  # the first process alone records what the server reports
        splits = {"test": self.pairs.test}
        if config.mode == "local":
            log = _ClientLog(self.log, self.place.client_ids[0])
        else:
            splits = {"validation": self.pairs.validation, **splits}
        return ServerEvaluation(
            policy=plan.shared_policy,
            splits=splits,
            score=functools.partial(
                evaluate_pairs, loss=objective.loss, beta=objective.beta, batch_size=config.eval_batch_size
            ),
            log=log,
            num_rounds=config.comm_round,
            frequency_of_test=config.frequency_of_test,
            sampler=self._sampler() if config.sample_during_eval else None,
            win_rate=win_rate_of(plan),
            accuracy_on="test" if config.accuracy_on == "test" else "validation",
            # With accuracy_on=client the clients score what they receive on their own pairs.
            always_accuracy=asks(strategy, "needs_server_accuracy") and config.accuracy_on != "client",
            seed=config.seed,
            ledger=ledger,
            # All evaluate or none: of several processes that share a model only the first one may run the strategy.
            is_over=lambda: ledger is not None and world.from_first(ledger.is_exhausted()),
            client_weights=lambda: client_weights(strategy),
        )

    def server_side(self, evaluate: Evaluate, on_traffic: OnTraffic) -> ServerSide:
        """Return the server's side of the federation, with `evaluate` called after every round."""
        return ServerSide(self._make_app, self.initial, evaluate, self._persistence(), on_traffic)

    def _make_app(self, initial: ArrayRecord, evaluate: Evaluate, done: int) -> ServerApp:
        ledger = self.evaluation.ledger
        return server_app(
            initial,
            evaluate,
            done,
            strategy=self.strategy,
            train_config=self.evaluation.train_config,
            num_rounds=self.plan.config.comm_round,
            is_over=lambda: ledger is not None and ledger.is_exhausted(),
        )

    def _persistence(self) -> Persistence:
        """Return what is kept in checkpoints, and tell the user what cannot be kept."""
        state = StrategyState(self.strategy)
        if self.checkpointer.every and (left_out := state.left_out()):
            self.console.print(
                f"not saved in checkpoints, because no file can hold it: {', '.join(left_out)}; give the strategy "
                "state_dict() and load_state_dict(state) to save it"
            )
        ledger = self.evaluation.ledger
        stateful: dict[str, Stateful] = {} if ledger is None else {"privacy": ledger}
        stateful |= {"strategy": state, "server": self.evaluation, "log": self.log}
        return Persistence(self.checkpointer, stateful, self.checkpoint, lambda: self.log.phase("checkpoint"))

    def _sampler(self) -> Sampler:
        config = self.plan.config
        draws = Draws(
            max_new_tokens=config.max_length - config.max_prompt_length,
            batch_size=config.eval_batch_size,
            seed=config.seed,
            temperature=config.sample_temperature,
            top_p=config.sample_top_p,
            fixed_length=config.sample_fixed_length,
        )
        longest = config.max_prompt_length
        examples = with_different_prompts(self.pairs.test, config.n_eval_model_samples, max_prompt_length=longest)
        return Sampler(examples, max_prompt_length=longest, draws=draws)


class _ClientLog(Log):
    """The log of a client that trains alone: it records the server's reports under that client's name.

    A mean over clients, a client's weight in the aggregate and privacy say nothing about one client and are ignored.
    """

    def __init__(self, log: Log, client_id: int) -> None:
        self._log, self._client_id = log, client_id

    def server(self, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Report an evaluation as the client's."""
        self._log.client(self._client_id, server_round, split, metrics)

    def evaluated(
        self,
        server_round: int,
        margins: Sequence[float] = (),
        samples: Sequence[Mapping[str, str]] = (),
        *,
        who: str = "server",
    ) -> None:
        """Report margins and responses as the client's."""
        self._log.evaluated(server_round, margins, samples, who=f"client-{self._client_id}")

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Account the time spent inside to the phase `name`."""
        return self._log.phase(name)


def checkpointer_of(plan: Plan, place: Place, model_hash: str) -> Checkpointer:
    """Return the checkpointer of a place."""
    config, mesh = plan.config, plan.machine.mesh
    return Checkpointer(
        place.checkpoints,
        mesh,
        Shards(plan.policy.model),
        {
            "number of processes": mesh.world.count,
            "clients_in_parallel": mesh.groups.count,
            MODEL_HASH: model_hash,
        },
        every=0 if config.debug else config.checkpoint_every,
        last=config.checkpoint_keep,
        num_rounds=config.comm_round,
    )
