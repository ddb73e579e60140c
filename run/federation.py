"""One federation of a run: its strategy, evaluation and memory, with clients in this program or elsewhere."""

import functools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, MessageType, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy
from rich.console import Console

from clients.app import Client, client_app
from clients.first_visit import Columns, FirstVisits
from clients.trainer import LocalTrainer
from fed.checkpoints.checkpointer import Checkpoint, Checkpointer, Stateful
from fed.checkpoints.journal import Journal
from fed.config.checks import Request
from fed.config.flower import to_text
from fed.distributed.ranks import Ranks
from fed.distributed.shards import Shards, is_sharded
from fed.distributed.stop import Stop
from fed.grids.faults import Faults
from fed.grids.leader import Evaluate, in_parts
from fed.grids.remote import MODEL, RUN, SETTINGS, RemoteGrid
from fed.grids.settings import LocalGridSettings, RemoteGridSettings
from fed.grids.wire import Wire
from fed.model.arrays import to_tensors
from fed.model.evaluation import evaluate_pairs
from fed.model.identity import identity
from fed.model.samples import Sampler
from fed.simulation import Persistence, Processes, ServerSide, ignore_traffic, serve, simulate
from fed.tracking.log import Log, Recorder
from run.plan import Plan, local_settings, references
from server.app import server_app
from server.evaluate import ServerEvaluation
from server.privacy import ledger_of
from server.state import StrategyState
from server.strategies import StreamingFedAvg
from server.traits import asks, client_weights, joins_groups, sampled, streams, takes_parts

MODEL_HASH = "model before training (SHA-256)"  # a key of what tells runs apart
# Metrics of a client's training, ours and those of its reply; with `privacy=` it sends none.
OF_A_TRAINING = {"train": {"loss": "train_loss", "decay": "decay"}, "validation": {"accuracy": "accuracy"}}
OF_AN_EVALUATION = ("accuracy", "margin", "loss")  # metrics that a client's evaluation of its own pairs gives


@dataclass(frozen=True)
class Place:
    """Where one federation of a run keeps its results."""

    client_ids: Sequence[int]
    checkpoints: Path
    policy: Path


@dataclass(frozen=True)
class RemoteClients:
    """Clients behind a grid of Flower's own, and the settings that they are sent."""

    grid: Grid
    settings: Request


def federate(
    plan: Plan,
    tracker: Log,
    initial: ArrayRecord,
    place: Place,
    checkpointer: Checkpointer,
    checkpoint: Checkpoint | None,
    console: Console,
) -> ArrayRecord:
    """Run all rounds, or those after a checkpoint, over the clients of a place; the final global weights."""
    config, strategy, mesh = plan.config, plan.make_strategy(), plan.mesh
    evaluation = _evaluation(plan, tracker, strategy, place)
    trainer = LocalTrainer(plan.policy, local_settings(plan))
    parts = None
    if is_sharded(plan.policy.model) and (plan.mods or not takes_parts(strategy)):
        parts = Shards(plan.policy.model)
    joins = parts is None and joins_groups(strategy)  # else the strategy runs in the first process only
    known = to_tensors(initial)
    if parts is not None and config.wire_dtype != "float32":
        known = parts.whole(known, keep=True)
    if isinstance(strategy, StreamingFedAvg) and joins:
        strategy.groups = mesh.groups
    mods = plan.mods if parts is None else [*plan.mods, in_parts(parts)]
    clients = Recorder(tracker)
    within = place.checkpoints if config.checkpoint_within_round and checkpointer.every == 1 else None
    journal = Journal(
        within,
        mesh.world.index,
        mesh.own,
        checkpointer.files,
        clients,
        checkpointer.run,
        client_timeout=config.client_timeout,
    )
    pairs = plan.clients if plan.meets_all else _first_visits(plan, tracker, initial, str(checkpointer.run[MODEL_HASH]))
    server = ServerSide(
        _server(plan, strategy, evaluation),
        initial,
        evaluation,
        _persistence_of(plan, strategy, evaluation, tracker, checkpointer, checkpoint, console),
        tracker.communication if config.mode == "federated" else ignore_traffic,
    )
    return simulate(
        server,
        client_app(Client(trainer, pairs, clients, journal, budget(plan, trainer)), mods),
        place.client_ids,
        LocalGridSettings(
            wire=Wire(config.wire_dtype, known),
            streams=streams(strategy) and (joins or mesh.groups.count == 1),
            min_fit_clients=min(config.min_fit_clients, len(place.client_ids)),
            on_failure=tracker.failed,
            numel=Shards(plan.policy.model).numel,
            journal=journal,
            seed=config.seed,
            own=mesh.own,
            faults=Faults(config.faults, config.client_timeout, config.seed),
        ),
        Processes(
            mesh,
            [trainer.schedule.num_pairs(plan.clients[k].train, k)[0] for k in place.client_ids]
            if mesh.groups.count > 1
            else [],
            lambda: exchange(mesh.groups, tracker),
            parts,
        ),
    )


def federate_remotely(
    plan: Plan,
    clients: RemoteClients,
    tracker: Log,
    initial: ArrayRecord,
    place: Place,
    checkpointer: Checkpointer,
    checkpoint: Checkpoint | None,
    console: Console,
) -> ArrayRecord:
    """As `federate`, with clients behind a grid of Flower's."""
    config, strategy = plan.config, plan.make_strategy()
    evaluation = _evaluation(plan, tracker, strategy, place)

    def on_reply(client_id: int, server_round: int, kind: str, told: Mapping[str, Any]) -> None:
        if kind != MessageType.TRAIN:
            tracker.client(client_id, server_round, "held-out", {k: told[k] for k in told if k in OF_AN_EVALUATION})
            return
        tracker.start_client(server_round, client_id, told.get("pairs", 0))
        tracker.advance(told.get("pairs", 0))
        for split, names in OF_A_TRAINING.items():
            if found := {ours: told[theirs] for ours, theirs in names.items() if theirs in told}:
                tracker.client(client_id, server_round, split, found)

    settings = RemoteGridSettings(
        told={
            MODEL: json.dumps(identity(plan.policy, str(checkpointer.run[MODEL_HASH]))),
            RUN: "_".join(place.checkpoints.parent.absolute().parts[-2:]),
            SETTINGS: to_text(clients.settings),
        },
        wait=config.process_timeout,
        simulated=config.engine == "ray",
        timeout=config.client_timeout if config.engine == "flower" else None,
        on_reply=on_reply,
        wire=Wire(config.wire_dtype, to_tensors(initial)),
        streams=streams(strategy),
        min_fit_clients=config.min_fit_clients,
        on_failure=tracker.failed,
    )

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        found = evaluation(server_round, arrays)
        tracker.end_round()  # what is next heard of a client may be its reply
        return found

    persistence = _persistence_of(plan, strategy, evaluation, tracker, checkpointer, checkpoint, console)
    server = ServerSide(_server(plan, strategy, evaluation), initial, evaluate, persistence, tracker.communication)
    return serve(server, RemoteGrid(clients.grid, settings), plan.num_clients)


def _evaluation(plan: Plan, tracker: Log, strategy: Strategy, place: Place) -> ServerEvaluation:
    config, ledger = plan.config, ledger_of(strategy)
    score = functools.partial(evaluate_pairs, loss=plan.loss, beta=plan.beta, batch_size=config.eval_batch_size)
    log = tracker if plan.mesh.world.is_first else Log()  # the first process alone records what the server reports
    if config.mode == "local":
        log = _ClientLog(tracker, place.client_ids[0])
    return ServerEvaluation(
        policy=plan.everyone,
        splits={"test": plan.test} if config.mode == "local" else {"validation": plan.validation, "test": plan.test},
        score=score,
        log=log,
        num_rounds=config.comm_round,
        frequency_of_test=config.frequency_of_test,
        sampler=_sampler(plan) if config.sample_during_eval else None,
        always_accuracy=asks(strategy, "needs_server_accuracy"),
        seed=config.seed,
        ledger=ledger,
        # All evaluate or none: of several processes that share a model only the first one may run the strategy.
        is_over=lambda: ledger is not None and plan.mesh.world.from_first(ledger.is_exhausted()),
        client_weights=lambda: client_weights(strategy),
    )


@dataclass(frozen=True)
class _ClientLog(Log):
    """The log of a client that trains alone: it records the server's reports under that client's name.

    A mean over clients, a client's weight in the aggregate and privacy say nothing about one client and are ignored.
    """

    tracker: Log
    client_id: int

    def server(self, server_round: int, split: str, metrics: Mapping[str, float]) -> None:
        """Record metrics of the client's own model."""
        self.tracker.client(self.client_id, server_round, split, metrics)

    def evaluated(
        self,
        server_round: int,
        margins: Sequence[float] = (),
        samples: Sequence[Mapping[str, str]] = (),
        *,
        who: str = "server",
    ) -> None:
        """Record that the client's own model was evaluated."""
        self.tracker.evaluated(server_round, margins, samples, who=f"client-{self.client_id}")

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Account the time spent inside in the run's log."""
        return self.tracker.phase(name)


def _sampler(plan: Plan) -> Sampler:
    config = plan.config
    return Sampler(
        plan.test[: config.n_eval_model_samples],
        max_length=config.max_length,
        max_prompt_length=config.max_prompt_length,
        batch_size=config.eval_batch_size,
        seed=config.seed,
    )


def _server(
    plan: Plan, strategy: Strategy, evaluation: ServerEvaluation
) -> Callable[[ArrayRecord, Evaluate, int], ServerApp]:
    ledger = evaluation.ledger
    return functools.partial(
        server_app,
        strategy=strategy,
        train_config=evaluation.train_config,
        num_rounds=plan.config.comm_round,
        is_over=lambda: ledger is not None and ledger.is_exhausted(),
    )


def _persistence_of(
    plan: Plan,
    strategy: Strategy,
    evaluation: ServerEvaluation,
    tracker: Log,
    checkpointer: Checkpointer,
    checkpoint: Checkpoint | None,
    console: Console,
) -> Persistence:
    """What of a federation is kept on the disk; the user is told of what cannot be."""
    state = StrategyState(strategy)
    if checkpointer.every and (left_out := state.left_out()):
        console.print(
            f"not in checkpoints, for no file can hold it: {', '.join(left_out)}; a strategy with "
            "state_dict() and load_state_dict(state) says itself what to keep",
            soft_wrap=True,
            highlight=False,
        )
    books: dict[str, Stateful] = {} if evaluation.ledger is None else {"privacy": evaluation.ledger}
    stateful: dict[str, Stateful] = {**books, "strategy": state, "server": evaluation, "log": tracker}
    return Persistence(checkpointer, stateful, checkpoint, lambda: tracker.phase("checkpoint"))


def _first_visits(plan: Plan, tracker: Log, initial: ArrayRecord, model: str) -> FirstVisits:
    """The clients' pairs; the processes that train a client fill in its reference column together."""
    policy = replace(plan.policy, between=Stop(plan.mesh.own).check)
    scoring = {"server": plan.validation, "client": None, "test": plan.test}[plan.config.accuracy_on]
    fill = references(plan, model, policy)
    how = Columns(policy.model, initial, fill, plan.supervised, scoring, lambda: tracker.phase("reference"))
    return FirstVisits(plan.clients, how)


def budget(plan: Plan, trainer: LocalTrainer) -> list[int]:
    """In mode=centralized the pairs of each round: as many as a federation over the same pairs trains in it."""
    config, count = plan.config, len(plan.holders)
    if config.mode != "centralized":
        return []
    rounds: list[Iterable[int]] = [range(count)] * config.comm_round
    if config.clients_per_round is not None and config.clients_per_round < count:
        rounds = [sampled(count, config.clients_per_round, r + 1, config.seed) for r in range(config.comm_round)]
    often = Counter(client for clients in rounds for client in clients)
    visits = {k: iter(trainer.schedule.num_pairs(plan.holders[k].train, k, times)) for k, times in often.items()}
    return [sum(next(visits[client]) for client in clients) for clients in rounds]


def exchange(groups: Ranks, tracker: Log) -> None:
    """Report to the first group's log what the clients of the other groups reported."""
    told = groups.gather(tracker.fetch())
    if groups.is_first:
        for events in told:
            tracker.replay(events)
