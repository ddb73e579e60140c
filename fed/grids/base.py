"""What every grid here does: round by round, count what travels and how many clients succeed."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fed.errors import TooFewClients
from fed.grids.wire import Wire
from fed.model.arrays import standing_for

# Told client, round, reason and traceback.
OnFailure = Callable[[int, int, str, str], None]


def unheard(client_id: int, server_round: int, reason: str, details: str) -> None:
    """Nobody is told of failures."""


class CountingGrid(Grid):
    """A grid whose replies are asked for one by one, in the order of the messages.

    Args:
        wire: How arrays travel.
        streams: Whether the strategy reads each reply once and in order. Then one reply is alive at a time. Otherwise
            replies come as a list, emptied when the next messages are sent (`Strategy.start` would keep them alive for
            another round).
        min_fit_clients: With fewer successful replies to "train" the run ends.
        on_failure: Told client, round, the reason in one line, and the traceback if there is one.
        numel: Numbers in the whole of an array, from its name and shape; of a model that is split, records hold parts.
    """

    contexts: Sequence[Context] = ()  # what the clients store between rounds, where they are here

    def __init__(
        self,
        *,
        wire: Wire,
        streams: bool = False,
        min_fit_clients: int = 0,
        on_failure: OnFailure = unheard,
        numel: Callable[[str, Sequence[int]], int] = lambda name, shape: math.prod(shape),
    ) -> None:
        self.wire, self.streams, self.min_fit_clients = wire, streams, min_fit_clients
        self.sent = self.received = 0  # bytes of the arrays that the server sent and got in the present round
        self.on_failure, self._numel = on_failure, numel
        self.server_round = 1
        self._last_replies: list[Message] = []

    def begin(self, server_round: int) -> None:
        """What clients are sent from now on belongs to this round."""
        self.server_round = server_round
        self.sent = self.received = 0

    def state_dict(self) -> dict[str, Any]:
        """What must be known of this grid to go on after a round, but for the clients' states."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one client."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The replies to `messages`, in order; a client that does not answer in time answers with an error.

        How long it may take is the grid's to know: strategies pass the `timeout` that `Strategy.start` was given.
        """
        self._last_replies.clear()
        accepted = [self.accept(message) for message in messages]
        if self.streams:
            return self.enough(accepted)
        self._last_replies = list(self.enough(accepted))
        return self._last_replies

    @abstractmethod
    def accept(self, message: Message) -> Message:
        """A strategy's message as it can be sent."""

    @abstractmethod
    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """The answers to accepted messages, in order."""

    def enough(self, messages: list[Message]) -> Iterator[Message]:
        """The replies; too few that can be used are found when all have come."""
        asked = succeeded = 0
        self.sent += sum(self._bytes(message.content) for message in messages)
        for reply in self.replies(messages):
            self.received += 0 if reply.has_error() else self._bytes(reply.content)
            if reply.metadata.message_type == MessageType.TRAIN:
                asked, succeeded = asked + 1, succeeded + (not reply.has_error())
            yield reply
            del reply  # or it would stay alive while the next client trains
        if asked and succeeded < self.min_fit_clients:
            raise TooFewClients(
                f"round {self.server_round}: {succeeded} of {asked} clients succeeded, fewer than "
                f"min_fit_clients={self.min_fit_clients}"
            )

    def _bytes(self, content: RecordDict) -> int:
        records = (standing_for(record) for record in content.array_records.values())
        return sum(
            self._numel(n, array.shape) * self.wire.itemsize for record in records for n, array in record.items()
        )
