"""One federation inside this process: strategy, clients and evaluation, joined by Flower messages."""

from collections.abc import Sequence

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fed.grid import LocalGrid


def simulate(server: ServerApp, client: ClientApp, client_ids: Sequence[int], *, streams: bool = False) -> ArrayRecord:
    """Run the server app over these clients; the final global weights.

    Args:
        server: Leaves the weights in its context, under "arrays".
        client: The app every client runs; it finds its number under `partition-id`.
        client_ids: One client per entry, reached as node 0, 1, ...
        streams: Whether the strategy reads each reply once and in order.
    """
    contexts = [
        Context(0, node, {"partition-id": client_id, "num-partitions": len(client_ids)}, RecordDict(), {})
        for node, client_id in enumerate(client_ids)
    ]
    context = Context(0, -1, {}, RecordDict(), {})
    server(LocalGrid(client, contexts, streams=streams), context)
    return context.state.array_records["arrays"]
