"""A federation whose clients run in the processes of this program."""

from collections import Counter
from collections.abc import Iterable

from flwr.app import ArrayRecord

from clients.app import Client, client_app
from clients.schedule import Schedule
from clients.trainer import LocalTrainer
from fed.checkpoints.journal import Journal
from fed.distributed.ranks import Ranks
from fed.distributed.shards import Shards, is_sharded
from fed.grids.faults import Faults
from fed.grids.leader import in_parts
from fed.grids.settings import LocalGridSettings
from fed.grids.wire import Wire
from fed.model.arrays import to_tensors
from fed.simulation import Processes, ignore_traffic, simulate
from fed.tracking.log import Log, Recorder
from run.federation import Federation
from run.online import client_win_rate, fresh_pairs
from run.plan import Plan, local_settings
from server.strategies import StreamingFedAvg
from server.traits import joins_groups, sampled, streams, takes_parts


def train_here(federation: Federation) -> ArrayRecord:
    """Run the federation's rounds, and return the final global weights or this process's parts of them."""
    plan, place, log = federation.plan, federation.place, federation.log
    config, mesh, strategy = plan.config, plan.machine.mesh, federation.strategy
    parts = None
    if is_sharded(plan.policy.model) and (plan.mods or not takes_parts(strategy)):
        parts = Shards(plan.policy.model)
    joins = parts is None and joins_groups(strategy)  # else the strategy runs in the first process only
    if isinstance(strategy, StreamingFedAvg) and joins:
        strategy.groups = mesh.groups
    trainer, recorder = LocalTrainer(plan.policy, local_settings(plan)), Recorder(log)
    journal = _journal(federation, recorder)
    mods = plan.mods if parts is None else [*plan.mods, in_parts(parts)]
    given, strict = budget(plan, trainer.schedule), not plan.mods
    fresh, wins = fresh_pairs(plan, federation.initial), client_win_rate(plan, federation.initial)
    client = Client(trainer, federation.pairs, recorder, journal, given, config.accuracy_on, strict, fresh, wins)
    shared = place.client_ids if mesh.groups.count > 1 else []  # the groups share the work
    work = [trainer.schedule.num_pairs(plan.pairs.clients[k].train, k)[0] for k in shared]
    return simulate(
        federation.server_side(
            federation.evaluation, log.communication if config.mode == "federated" else ignore_traffic
        ),
        client_app(client, mods),
        place.client_ids,
        LocalGridSettings(
            wire=_wire(federation, parts),
            streams=streams(strategy) and (joins or mesh.groups.count == 1),
            min_fit_clients=min(config.min_fit_clients, len(place.client_ids)),
            on_failure=log.failed,
            numel=Shards(plan.policy.model).numel,
            journal=journal,
            seed=config.seed,
            own=mesh.own,
            faults=Faults(config.faults, config.client_timeout, config.seed),
        ),
        Processes(mesh, work, lambda: exchange(mesh.groups, log), parts),
    )


def _journal(federation: Federation, recorder: Recorder) -> Journal:
    config, mesh, checkpointer = federation.plan.config, federation.plan.machine.mesh, federation.checkpointer
    within_round = config.checkpoint_within_round and checkpointer.every == 1
    return Journal(
        federation.place.checkpoints if within_round else None,
        mesh.world.index,
        mesh.own,
        checkpointer.files,
        recorder,
        checkpointer.run,
        client_timeout=config.client_timeout,
    )


def _wire(federation: Federation, parts: Shards | None) -> Wire:
    dtype, known = federation.plan.config.wire_dtype, to_tensors(federation.initial)
    if parts is not None and dtype != "float32":
        known = parts.whole(known, keep=True)
    return Wire(dtype, known)


def budget(plan: Plan, schedule: Schedule) -> list[int]:
    """Return how many pairs each round of mode=centralized trains: as many as a federation over the same pairs.

    In other modes the list is empty.
    """
    config, holders = plan.config, plan.pairs.holders
    if config.mode != "centralized":
        return []
    count = len(holders)
    rounds: list[Iterable[int]] = [range(count)] * config.comm_round
    if config.clients_per_round is not None and config.clients_per_round < count:
        rounds = [sampled(count, config.clients_per_round, r + 1, config.seed) for r in range(config.comm_round)]
    often = Counter(client for clients in rounds for client in clients)
    visits = {k: iter(schedule.num_pairs(holders[k].train, k, times)) for k, times in often.items()}
    return [sum(next(visits[client]) for client in clients) for clients in rounds]


def exchange(groups: Ranks, log: Log) -> None:
    """Report to the first process's log what clients of the other groups reported."""
    reports = groups.gather(log.fetch())
    if groups.is_first:
        for events in reports:
            log.replay(events)
