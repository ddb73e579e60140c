"""One federation inside this program: strategy, clients and evaluation, joined by Flower messages."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fed.checkpoints.checkpointer import Checkpoint, Checkpointer, Stateful
from fed.checkpoints.contexts import Contexts
from fed.distributed.ranks import ONE_PROCESS, Mesh
from fed.distributed.shards import Shards
from fed.distributed.stop import Stop
from fed.grids.base import CountingGrid
from fed.grids.groups import GroupGrid
from fed.grids.leader import Evaluate, LeaderGrid, follow
from fed.grids.local import LocalGrid
from fed.grids.remote import RemoteGrid
from fed.model.arrays import to_record, to_tensors

# Told round, bytes sent, bytes received.
OnTraffic = Callable[[int, int, int], None]


def unheard(server_round: int, sent: int, received: int) -> None:
    """Nobody is told what travelled."""


@dataclass(frozen=True)
class Processes:
    """How the processes of a run share a federation."""

    mesh: Mesh = ONE_PROCESS
    work: Sequence[float] = ()  # what each client's round is expected to cost
    exchange: Callable[[], None] = lambda: None  # called by all groups when the clients of a round are done
    parts: Shards | None = None  # the strategy runs in the first process, on whole arrays put together from these


ALONE = Processes()


@dataclass(frozen=True)
class Persistence:
    """What is kept of a federation on the disk."""

    checkpointer: Checkpointer
    stateful: Mapping[str, Stateful]  # what has a state besides the clients
    checkpoint: Checkpoint | None = None  # the checkpoint to go on from
    phase: Callable[[], AbstractContextManager[None]] = nullcontext  # around the writing of a checkpoint


def simulate(
    server: Callable[[ArrayRecord, Evaluate, int], ServerApp],
    initial: ArrayRecord,
    evaluate: Evaluate,
    client: ClientApp,
    client_ids: Sequence[int],
    *,
    streams: bool = False,
    processes: Processes = ALONE,
    persistence: Persistence | None = None,
    on_traffic: OnTraffic = unheard,
    **how: Any,
) -> ArrayRecord:
    """Run a federation over these clients; the final global weights, or this process's parts of them.

    Args:
        server: Makes the server app from initial arrays, Flower's `evaluate_fn` and the number of rounds that are done
            already; the app leaves the final arrays in its context, under "arrays".
        initial: Weights before the first round, or this process's parts of them.
        evaluate: Evaluates weights, of which it gets this process's parts.
        client: The app every client runs; it finds its number under `partition-id`.
        client_ids: One client per entry, reached as node 0, 1, ...
        streams: Whether the strategy reads each reply once and in order.
        processes: All of them call this.
        persistence: What is on the disk, and will be; None: nothing.
        on_traffic: Told of each round how many bytes of arrays the server sent and received.
        **how: As for `LocalGrid`.
    """
    contexts, mesh, parts = Contexts(client_ids), processes.mesh, processes.parts
    how["streams"] = streams
    grid = LocalGrid(client, contexts, **how)
    if mesh.groups.count > 1:
        grid = GroupGrid(client, contexts, groups=mesh.groups, work=processes.work, exchange=processes.exchange, **how)
    done, initial = _begin(grid, initial, persistence)
    grids: list[CountingGrid] = [grid]
    each_round = _each_round(evaluate, grids, persistence, on_traffic, Stop(mesh.world))
    if parts is None:
        return _served(server(initial, each_round, done), grid)
    whole = parts.whole(to_tensors(initial), keep=mesh.world.is_first)
    if not mesh.world.is_first:
        return follow(grid, mesh.world, parts, each_round)
    leader = LeaderGrid(grid, mesh.world, parts)
    grids.append(leader)
    told = functools.partial(leader.evaluate, each_round)
    return leader.finish(_served(server(to_record(whole), told, done), leader))


def serve(
    server: Callable[[ArrayRecord, Evaluate, int], ServerApp],
    initial: ArrayRecord,
    evaluate: Evaluate,
    grid: RemoteGrid,
    num_clients: int,
    *,
    persistence: Persistence | None = None,
    on_traffic: OnTraffic = unheard,
) -> ArrayRecord:
    """Run a federation of so many clients that are elsewhere; the final global weights.

    `server`, `initial`, `evaluate`, `persistence` and `on_traffic` are as for `simulate`.
    """
    grid.gather(num_clients)
    done, initial = _begin(grid, initial, persistence)
    return _served(server(initial, _each_round(evaluate, [grid], persistence, on_traffic, Stop()), done), grid)


def _each_round(
    evaluate: Evaluate,
    grids: Sequence[CountingGrid],
    persistence: Persistence | None,
    on_traffic: OnTraffic,
    stop: Stop,
) -> Evaluate:
    """What a strategy calls after every round: `evaluate`, and all else that is then due.

    Clients are behind the first grid; the strategy talks to the last one.
    """

    def evaluate_and_keep(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round:
            on_traffic(server_round, grids[-1].sent, grids[-1].received)
        found = evaluate(server_round, arrays)
        if persistence is not None and server_round and persistence.checkpointer.is_due(server_round):
            with persistence.phase():
                persistence.checkpointer.save(server_round, arrays, grids[0], persistence.stateful, found)
        stop.check()
        for grid in grids:
            grid.begin(server_round + 1)
        return found

    return evaluate_and_keep


def _begin(grid: CountingGrid, initial: ArrayRecord, persistence: Persistence | None) -> tuple[int, ArrayRecord]:
    """The rounds that are done, and the weights after them."""
    done = 0
    if persistence is not None and persistence.checkpoint is not None:
        done, initial = (
            persistence.checkpoint.server_round,
            persistence.checkpointer.restore(persistence.checkpoint, initial, grid, persistence.stateful),
        )
    grid.begin(done + 1)
    return done, initial


def _served(server: ServerApp, grid: CountingGrid) -> ArrayRecord:
    context = Context(0, -1, {}, RecordDict(), {})
    server(grid, context)
    return context.state.array_records["arrays"]
