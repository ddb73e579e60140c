"""`CountingGrid`: the base of every grid here. It counts the bytes that travel and the clients that succeed."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fed.errors import TooFewClients
from fed.grids.settings import GridSettings
from fed.model.arrays import standing_for


class CountingGrid(Grid):
    """A grid whose replies are asked for one by one, in the order of the messages."""

    contexts: Sequence[Context] = ()  # the clients' contexts, where the clients run in this program

    def __init__(self, settings: GridSettings) -> None:
        self.settings = settings
        self.sent = self.received = 0  # bytes of the arrays that the server sent and got in the present round
        self.server_round = 1
        self._last_replies: list[Message] = []

    def begin(self, server_round: int) -> None:
        """Begin a round: the messages from now on belong to it."""
        self.server_round = server_round
        self.sent = self.received = 0

    def state_dict(self) -> dict[str, Any]:
        """Return what this grid must know to continue after a round, besides the clients' contexts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Return a message to one client."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Return the replies to `messages`, in order; a client that does not answer in time answers with an error.

        `timeout` is ignored: strategies pass the one that `Strategy.start` was given, and the grid has its own.
        """
        self._last_replies.clear()
        accepted = [self.accept(message) for message in messages]
        if self.settings.streams:
            return self.counted_replies(accepted)
        self._last_replies = list(self.counted_replies(accepted))
        return self._last_replies

    @abstractmethod
    def accept(self, message: Message) -> Message:
        """Return a strategy's message in the form in which it can be sent."""

    @abstractmethod
    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """Yield the answers to accepted messages, in order."""

    def counted_replies(self, messages: list[Message]) -> Iterator[Message]:
        """Yield the replies and count their bytes.

        Raises:
            TooFewClients: When all replies have come, if fewer than `min_fit_clients` can be used.
        """
        answered = succeeded = 0
        self.sent += sum(self._bytes(message.content) for message in messages)
        for reply in self.replies(messages):
            self.received += 0 if reply.has_error() else self._bytes(reply.content)
            if reply.metadata.message_type == MessageType.TRAIN:
                answered, succeeded = answered + 1, succeeded + (not reply.has_error())
            yield reply
            del reply  # or it would stay alive while the next client trains
        if answered and succeeded < self.settings.min_fit_clients:
            raise TooFewClients(
                f"round {self.server_round}: {succeeded} of {answered} clients succeeded, fewer than "
                f"min_fit_clients={self.settings.min_fit_clients}"
            )

    def _bytes(self, content: RecordDict) -> int:
        """Return the bytes that the arrays of a message take on their way."""
        records = [standing_for(record) for record in content.array_records.values()]
        numbers = sum(self.settings.numel(name, array.shape) for record in records for name, array in record.items())
        return numbers * self.settings.wire.itemsize
