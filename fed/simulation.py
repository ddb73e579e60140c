"""One federation inside this program: strategy, clients and evaluation, joined by Flower messages."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fed.arrays import to_record, to_tensors
from fed.grid import LocalGrid
from fed.group_grid import GroupGrid
from fed.leader import Evaluate, LeaderGrid, follow
from fed.ranks import ONE_PROCESS, Mesh
from fed.sharding import Parts


@dataclass(frozen=True)
class Processes:
    """How the processes of a run share a federation."""

    mesh: Mesh = ONE_PROCESS
    work: Sequence[float] = ()  # what each client's round is expected to cost
    exchange: Callable[[], None] = lambda: None  # called by all groups when the clients of a round are done
    parts: Parts | None = None  # the strategy runs in the first process, on whole arrays put together from these


ALONE = Processes()


def simulate(
    server: Callable[[ArrayRecord, Evaluate], ServerApp],
    initial: ArrayRecord,
    evaluate: Evaluate,
    client: ClientApp,
    client_ids: Sequence[int],
    *,
    streams: bool = False,
    processes: Processes = ALONE,
) -> ArrayRecord:
    """Run a federation over these clients; the final global weights, or this process's parts of them.

    Args:
        server: Makes the server app from initial arrays and Flower's `evaluate_fn`; the app leaves the final arrays in
            its context, under "arrays".
        initial: Weights, or this process's parts of them.
        evaluate: Evaluates weights, of which it gets this process's parts.
        client: The app every client runs; it finds its number under `partition-id`.
        client_ids: One client per entry, reached as node 0, 1, ...
        streams: Whether the strategy reads each reply once and in order.
        processes: All of them call this.
    """
    contexts = [
        Context(0, node, {"partition-id": client_id, "num-partitions": len(client_ids)}, RecordDict(), {})
        for node, client_id in enumerate(client_ids)
    ]
    mesh, parts = processes.mesh, processes.parts
    grid = LocalGrid(client, contexts, streams=streams)
    if mesh.groups.count > 1:
        grid = GroupGrid(
            client, contexts, groups=mesh.groups, work=processes.work, streams=streams, exchange=processes.exchange
        )
    if parts is None:
        return _served(server(initial, evaluate), grid)
    whole = parts.whole(to_tensors(initial), keep=mesh.world.is_first)
    if not mesh.world.is_first:
        return follow(grid, mesh.world, parts, evaluate)
    leader = LeaderGrid(grid, mesh.world, parts)
    return leader.finish(_served(server(to_record(whole), functools.partial(leader.evaluate, evaluate)), leader))


def _served(server: ServerApp, grid: LocalGrid) -> ArrayRecord:
    context = Context(0, -1, {}, RecordDict(), {})
    server(grid, context)
    return context.state.array_records["arrays"]
