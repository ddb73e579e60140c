"""The settings of a grid: those of every grid, of one with clients in this program, and of one behind Flower's."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord

from fed.checkpoints.journal import Journal
from fed.distributed.ranks import ALONE, Ranks
from fed.grids.faults import Faults
from fed.grids.replies import Expected
from fed.grids.wire import AS_IT_IS, Wire

# Arguments: client, round, the reason in one line, and the traceback or "".
OnFailure = Callable[[int, int, str, str], None]
# Arguments: client, round, "train" or "evaluate", and the metrics of a reply that can be used.
OnReply = Callable[[int, int, str, Mapping[str, Any]], None]


def ignore_failure(client_id: int, server_round: int, reason: str, details: str) -> None:
    """Ignore a failure."""


def count_numbers(name: str, shape: Sequence[int]) -> int:
    """Return how many numbers an array of this shape holds."""
    return math.prod(shape)


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """The settings of every grid."""

    wire: Wire = AS_IT_IS  # how arrays travel
    # The strategy reads each reply once and in order, so one reply is alive at a time. Otherwise replies come as a
    # list, emptied when the next messages are sent (`Strategy.start` would keep them alive for another round).
    streams: bool = False
    min_fit_clients: int = 0  # with fewer successful replies to "train" the run ends
    on_failure: OnFailure = ignore_failure  # called for every client that fails
    # Counts the numbers in the whole of an array by its name and shape; a record of a split model holds parts.
    numel: Callable[[str, Sequence[int]], int] = count_numbers


@dataclass(frozen=True, kw_only=True)
class LocalGridSettings(GridSettings):
    """The settings of a grid whose clients run in this program."""

    journal: Journal | None = None  # finds the replies of a round if the run was cut off after them
    seed: int = 0  # of the global generators that a client draws from; the draws depend on client and round only
    own: Ranks = ALONE  # the processes that train a client together with this one
    faults: Faults | None = None  # failures to simulate


@dataclass(frozen=True, kw_only=True)
class RemoteGridSettings(GridSettings):
    """The settings of a grid whose clients are behind one of Flower's own grids."""

    message_config: Mapping[str, str]  # added to the config of every message: the values of MODEL, RUN and SETTINGS
    wait: float  # seconds that clients may be missing before the run ends
    simulated: bool  # a node is whichever client its message names; otherwise it is asked who it is, and to get ready
    # Seconds from sending after which a client is left out of the round; None: no limit. A node that Flower finds
    # offline is left out at once.
    timeout: float | None
    expected: Expected  # the records of every reply
    # Gives trained weights the accuracy that the strategy reads; None: it reads the client's own word.
    score: Callable[[ArrayRecord], float] | None = None
    on_reply: OnReply  # called for every reply that can be used
