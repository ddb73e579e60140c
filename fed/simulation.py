"""One federation, with clients inside this program (`simulate`) or elsewhere (`serve`), joined by Flower messages."""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fed.checkpoints.checkpointer import Checkpoint, Checkpointer, Stateful, rounds
from fed.checkpoints.contexts import Contexts
from fed.distributed.ranks import ALONE, ONE_PROCESS, Mesh, Ranks
from fed.distributed.shards import Shards
from fed.distributed.stop import Stop
from fed.errors import CannotContinue, NotFinite
from fed.grids.base import CountingGrid
from fed.grids.groups import GroupGrid
from fed.grids.leader import Evaluate, LeaderGrid, follow
from fed.grids.local import LocalGrid
from fed.grids.remote import RemoteGrid
from fed.grids.settings import LocalGridSettings
from fed.model.arrays import not_finite, to_record, to_tensors

# Arguments: round, bytes sent, bytes received.
OnTraffic = Callable[[int, int, int], None]


def ignore_traffic(server_round: int, sent: int, received: int) -> None:
    """Ignore what travelled."""


@dataclass(frozen=True)
class Processes:
    """The processes of a run, and how they share a federation."""

    mesh: Mesh = ONE_PROCESS
    work: Sequence[float] = ()  # the expected cost of each client's round, in any unit
    exchange: Callable[[], None] = lambda: None  # called by all groups when the clients of a round are done
    parts: Shards | None = None  # if given, the strategy runs in the first process, on whole arrays


ONE_PROCESS_ONLY = Processes()


@dataclass(frozen=True)
class Persistence:
    """The checkpoints of a federation."""

    checkpointer: Checkpointer
    stateful: Mapping[str, Stateful]  # the objects with a state, besides the clients
    checkpoint: Checkpoint | None = None  # the checkpoint to resume from
    phase: Callable[[], AbstractContextManager[None]] = nullcontext  # entered while a checkpoint is written


@dataclass(frozen=True)
class ServerSide:
    """The server's side of a federation.

    Args:
        make_app: Makes the server app from initial arrays, Flower's `evaluate_fn` and the number of rounds that are
            done already. The app leaves the final arrays in its context, under "arrays".
        initial: The weights before the first round, or this process's parts of them.
        evaluate: Evaluates weights, of which it gets this process's parts.
        persistence: The checkpoints to read and write; None: nothing is kept.
        on_traffic: Called after each round with the bytes of arrays that the server sent and received.
    """

    make_app: Callable[[ArrayRecord, Evaluate, int], ServerApp]
    initial: ArrayRecord
    evaluate: Evaluate
    persistence: Persistence | None = None
    on_traffic: OnTraffic = ignore_traffic


def simulate(
    server: ServerSide,
    client: ClientApp,
    client_ids: Sequence[int],
    settings: LocalGridSettings,
    processes: Processes = ONE_PROCESS_ONLY,
) -> ArrayRecord:
    """Run a federation over clients in this program and return the final global weights, or this process's parts.

    All processes call this.

    Args:
        server: The server's side.
        client: The app that every client runs; it finds its number under `partition-id`.
        client_ids: One client per entry, reached as node 0, 1, ...
        settings: The settings of the grid.
        processes: The processes that call this, and how they share the clients.
    """
    contexts, mesh, parts = Contexts(client_ids), processes.mesh, processes.parts
    if mesh.groups.count == 1:
        grid = LocalGrid(client, contexts, settings)
    else:
        work, exchange = processes.work, processes.exchange
        grid = GroupGrid(client, contexts, settings, groups=mesh.groups, work=work, exchange=exchange)
    done, initial = _begin(grid, server)
    if parts is None:
        each_round = _each_round(server, [grid], mesh.world)
        return _final(server.make_app(initial, each_round, done), grid)
    whole = parts.whole(to_tensors(initial), keep=mesh.world.is_first)
    if not mesh.world.is_first:
        return follow(grid, mesh.world, parts, _each_round(server, [grid], mesh.world))
    leader = LeaderGrid(grid, mesh.world, parts)
    evaluate = functools.partial(leader.evaluate, _each_round(server, [grid, leader], mesh.world))
    return leader.finish(_final(server.make_app(to_record(whole), evaluate, done), leader))


def serve(server: ServerSide, grid: RemoteGrid, num_clients: int) -> ArrayRecord:
    """Run a federation of `num_clients` clients that are elsewhere and return the final global weights."""
    grid.gather(num_clients)
    done, initial = _begin(grid, server)
    return _final(server.make_app(initial, _each_round(server, [grid]), done), grid)


def _each_round(server: ServerSide, grids: Sequence[CountingGrid], world: Ranks = ALONE) -> Evaluate:
    """Return what a strategy calls after every round: the evaluation, with the checkpoint and the check for a stop.

    The clients are behind the first grid; the strategy talks to the last one. Weights that are not finite are neither
    evaluated nor kept.
    """
    persistence, stop = server.persistence, Stop(world)
    sound = 0 if persistence is None or persistence.checkpoint is None else persistence.checkpoint.server_round

    def evaluate_and_save(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        nonlocal sound
        if server_round:
            server.on_traffic(server_round, grids[-1].sent, grids[-1].received)
        try:
            _check_finite(world, server_round, arrays)
            found = server.evaluate(server_round, arrays)
        except NotFinite as error:
            raise CannotContinue(f"{error}; {_way_back(persistence, sound)}") from error
        sound = sound if found is None else server_round
        if persistence is not None and server_round and persistence.checkpointer.is_due(server_round):
            with persistence.phase():
                persistence.checkpointer.save(server_round, arrays, grids[0], persistence.stateful, found)
        stop.check()
        for grid in grids:
            grid.begin(server_round + 1)
        return found

    return evaluate_and_save


def _check_finite(world: Ranks, server_round: int, arrays: ArrayRecord) -> None:
    """Refuse global weights that are not finite, in all processes alike.

    Raises:
        NotFinite: If this process's part of them, or another's, is not.
    """
    if (odd := world.any_of(not_finite(to_tensors(arrays)))) is not None:
        raise NotFinite(f"round {server_round}: {odd} of the global weights is not finite; the round is not kept")


def _way_back(persistence: Persistence | None, sound: int) -> str:
    """Name the last checkpoint whose weights were finite when they were evaluated."""
    if persistence is not None:
        folder = persistence.checkpointer.folder
        if kept := [server_round for server_round in rounds(folder) if server_round <= sound]:
            return f"the last finite weights are those of {folder / f'round-{max(kept)}'}"
    return "no checkpoint with finite weights is left"


def _begin(grid: CountingGrid, server: ServerSide) -> tuple[int, ArrayRecord]:
    """Restore the checkpoint, if there is one; return the number of rounds that are done and the weights after them."""
    done, initial, persistence = 0, server.initial, server.persistence
    if persistence is not None and persistence.checkpoint is not None:
        done = persistence.checkpoint.server_round
        initial = persistence.checkpointer.restore(persistence.checkpoint, initial, grid, persistence.stateful)
    grid.begin(done + 1)
    return done, initial


def _final(server: ServerApp, grid: CountingGrid) -> ArrayRecord:
    """Run the server app and return the arrays that it leaves in its context."""
    context = Context(0, -1, {}, RecordDict(), {})
    server(grid, context)
    return context.state.array_records["arrays"]
