"""`LocalGrid`: Flower's `Grid` inside this process. The only file that touches Flower's private names."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fed.journal import Journal
from fed.seeding import seeded_globals

SERVER_NODE = -1  # clients are nodes 0 to K-1


class LocalGrid(Grid):
    """Delivers messages to a `ClientApp` in this process, one client at a time, in the order they are sent.

    A client that raises ends the run: in a simulation nothing is swallowed.

    Args:
        app: The app every client runs.
        contexts: One context per client; node k is client k. They keep what a client stores between rounds.
        streams: Whether the strategy reads each reply once and in order. Then each client runs only when its reply is
            asked for, and one reply is alive at a time. Otherwise replies come as a list, emptied when the next
            messages are sent (`Strategy.start` would keep them alive for another round).
        journal: Where replies of a round are found if the run was cut off after them.
        seed: Of what clients draw from the global generators, which depends on client and round only.
    """

    def __init__(
        self,
        app: ClientApp,
        contexts: Sequence[Context],
        *,
        streams: bool = False,
        journal: Journal | None = None,
        seed: int = 0,
    ) -> None:
        self.app = app
        self.contexts = list(contexts)
        self.streams = streams
        self._journal, self._seed = journal, seed
        self._round = 1
        self._asked: Counter[tuple[str, int]] = Counter()
        self._ids = itertools.count(1)
        self._pending: dict[str, Message] = {}
        self._last_replies: list[Message] = []
        self._run = Run.create_empty(run_id=0)
        # `Message()` reads the sender from here; Flower's own processes set it when they start.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 0, SERVER_NODE, 0

    def begin(self, server_round: int) -> None:
        """What clients are sent from now on belongs to this round."""
        self._round = server_round
        self._asked.clear()

    def state_dict(self) -> dict[str, Any]:
        """What must be known of this grid to go on after a round, but for the contexts."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""

    def set_run(self, run: Run) -> None:
        """Set the run this grid works for."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run this grid works for."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message to one client."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """0 to K-1."""
        return range(len(self.contexts))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; their clients run when the replies are pulled."""
        accepted = [self._accept(message) for message in messages]
        self._pending.update({message.metadata.message_id: message for message in accepted})
        return [message.metadata.message_id for message in accepted]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the clients these messages were sent to and return their replies."""
        return list(self.replies([self._pending.pop(message_id) for message_id in message_ids]))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The replies to `messages`, in order. Clients here always answer, so `timeout` is not needed."""
        self._last_replies.clear()
        accepted = [self._accept(message) for message in messages]
        if self.streams:
            return self.replies(accepted)
        self._last_replies = list(self.replies(accepted))
        return self._last_replies

    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """Run the clients that these accepted messages go to, one by one."""
        yield from map(self.deliver, messages)

    def _accept(self, message: Message) -> Message:
        """The message with an id and with containers of its own: strategies send one `RecordDict` to every client."""
        message.content = RecordDict({key: _copy(record) for key, record in message.content.items()})
        return self.numbered(message)

    def deliver(self, message: Message) -> Message:
        """Run the client that an accepted message goes to; its reply."""
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        context = self.contexts[node]
        self._asked[kind, node] += 1
        number = self._asked[kind, node]

        def run() -> Message:
            with seeded_globals(self._seed, f"client {kind}", node, self._round, number):
                reply = self.app(message, context)
            if reply.has_error():
                raise RuntimeError(f"client {node} failed: {reply.error.reason}")
            return reply

        if self._journal is None:
            return self.numbered(run())
        return self.numbered(self._journal.answer(self._round, f"{kind}-{node}-{number}", message, context, run))

    def numbered(self, message: Message) -> Message:
        """The message, with a number that no other has."""
        message.metadata.__dict__["_message_id"] = str(next(self._ids))
        return message


def _copy(record: ArrayRecord | ConfigRecord | MetricRecord) -> ArrayRecord | ConfigRecord | MetricRecord:
    """A container of its own around the same values; arrays are not copied."""
    copy = type(record)()
    for key, value in record.items():  # one by one: given a dictionary, `ArrayRecord` serialises every value
        copy[key] = value  # type: ignore[assignment]
    return copy
