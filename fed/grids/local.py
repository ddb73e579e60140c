"""`LocalGrid`: Flower's `Grid` with all clients in this process. It uses private names of Flower."""

import functools
import itertools
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from flwr.app import Context, Error, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fed.config.flower import PARTITION_ID
from fed.errors import CannotContinue, Failed
from fed.grids.base import CountingGrid
from fed.grids.replies import arrays_of, check_reply
from fed.grids.settings import LocalGridSettings
from fed.model.arrays import copied
from fed.seeding import seeded_globals

SERVER_NODE = -1  # clients are nodes 0 to K-1
DEFAULT_SETTINGS = LocalGridSettings()


class LocalGrid(CountingGrid):
    """A grid that delivers messages to a `ClientApp` in this process, one client at a time, in the order they are sent.

    A client that fails answers with an error, which strategies leave out, and `on_failure` is called. If the strategy
    streams, each client runs only when its reply is asked for.

    Args:
        app: The app that every client runs.
        contexts: One context per client; node k is client k. They keep what a client stores between rounds.
        settings: The settings of the grid.
    """

    settings: LocalGridSettings

    def __init__(
        self, app: ClientApp, contexts: Sequence[Context], settings: LocalGridSettings = DEFAULT_SETTINGS
    ) -> None:
        super().__init__(settings)
        self.app = app
        self.contexts = contexts
        self._requests: Counter[tuple[str, int]] = Counter()
        self._ids = itertools.count(1)
        self._pending: dict[str, Message] = {}
        self._run = Run.create_empty(run_id=0)
        # `Message()` reads the sender from here; Flower's own processes set it when they start.
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 0, SERVER_NODE, 0

    def begin(self, server_round: int) -> None:
        """Begin a round: the messages from now on belong to it."""
        super().begin(server_round)
        self._requests.clear()

    def set_run(self, run: Run) -> None:
        """Set the run this grid works for."""
        self._run = run

    @property
    def run(self) -> Run:
        """Return the run this grid works for."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids 0 to K-1."""
        return range(len(self.contexts))

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Accept messages; their clients run when the replies are pulled."""
        accepted = [self.accept(message) for message in messages]
        self._pending.update({message.metadata.message_id: message for message in accepted})
        return [message.metadata.message_id for message in accepted]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the clients these messages were sent to and return their replies."""
        return list(self.counted_replies([self._pending.pop(message_id) for message_id in message_ids]))

    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """Run the clients that these accepted messages go to, one by one, and yield their replies."""
        yield from map(self.deliver, messages)

    def accept(self, message: Message) -> Message:
        """Give the message an id and containers of its own: strategies send one `RecordDict` to every client."""
        message.content = RecordDict({key: copied(record) for key, record in message.content.items()})
        return self.numbered(message)

    def deliver(self, message: Message) -> Message:
        """Run the client that an accepted message goes to, and return its reply, which may be an error."""
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        context = self.contexts[node]
        self._requests[kind, node] += 1
        number = self._requests[kind, node]
        try:
            if self.settings.journal is None:
                return self.numbered(self._attempt(message, context, number))
            what = f"{kind}-{node}-{number}"
            run = functools.partial(self._attempt, message, context, number)
            return self.numbered(self.settings.journal.answer(self.server_round, what, message, context, run))
        except Failed as error:
            reason, details = str(error), ""
        except CannotContinue:  # no fault of the client's
            raise
        except Exception as error:
            if self.settings.own.count > 1:  # the others wait for this process
                raise
            reason, details = f"{type(error).__name__}: {error}", traceback.format_exc()
        reason = " ".join(reason.split()) or "no reason given"
        self.settings.on_failure(_client_id(context), self.server_round, reason, details)
        return self.numbered(Message(Error(0, reason), reply_to=message))

    def _attempt(self, message: Message, context: Context, number: int) -> Message:
        """Return the client's answer.

        Raises:
            Failed: If the answer cannot be used.
        """
        node, kind, client_id = message.metadata.dst_node_id, message.metadata.message_type, _client_id(context)
        wire, faults = self.settings.wire, self.settings.faults
        # Flower's view refers to itself and would keep the arrays alive after the client is done.
        global_arrays = dict(message.content.array_records)
        received = {key: wire.travelled(record) for key, record in global_arrays.items()}
        for key, record in received.items():
            message.content[key] = record
        sent = arrays_of(message) if kind == MessageType.TRAIN else None
        if sent is not None and faults is not None:
            faults.before(client_id, self.server_round)
        with seeded_globals(self.settings.seed, f"client {kind}", node, self.server_round, number):
            reply = self.app(message, context)
        if reply.has_error():
            raise Failed(reply.error.reason)
        if sent is not None:
            if faults is not None:
                faults.after(client_id, self.server_round, sent, reply)
            check_reply(sent, reply, self.settings.own)
            for key in reply.content.array_records.keys() & received.keys():
                reply.content[key] = wire.returned(reply.content.array_records[key], received[key], global_arrays[key])
        return reply

    def numbered(self, message: Message) -> Message:
        """Give the message a number that no other has, and return it."""
        message.metadata.__dict__["_message_id"] = str(next(self._ids))
        return message


def _client_id(context: Context) -> int:
    return int(context.node_config[PARTITION_ID])
