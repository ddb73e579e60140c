"""Replies as Flower's grid gives them, each asked for by itself: one that cannot be read costs no other."""

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from fed.errors import Failed


def pull(grid: Grid, message_id: str) -> Message | None:
    """Return the reply to a message; None: it has not come yet.

    Raises:
        Failed: If the node sent bytes that Flower cannot read. It checks their length and their hash, not their form.
        httpx.HTTPError: If the SuperLink cannot be reached.
    """
    try:
        return next(iter(grid.pull_messages([message_id])), None)
    except httpx.HTTPError:
        raise
    except Exception as error:  # whatever the readers of foreign bytes raise
        raise Failed(f"its reply cannot be read: {type(error).__name__}: {error}") from error
