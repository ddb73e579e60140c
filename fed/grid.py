"""`LocalGrid`: Flower's `Grid` inside this process. The only file that touches Flower's private names."""

import functools
import itertools
import math
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import (
    Context,
    Error,
    Message,
    MessageType,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fed.arrays import copied, itemsize, standing_for
from fed.endings import CannotGoOn, Failed, TooFewClients
from fed.faults import Faults, arrays, check_reply
from fed.journal import Journal
from fed.ranks import ALONE, Ranks
from fed.seeding import seeded_globals

SERVER_NODE = -1  # clients are nodes 0 to K-1
# Told client, round, reason and traceback.
OnFailure = Callable[[int, int, str, str], None]


class LocalGrid(Grid):
    """Delivers messages to a `ClientApp` in this process, one client at a time, in the order they are sent.

    A client that fails answers with an error, which strategies leave out, and is told to `on_failure`.

    Args:
        app: The app every client runs.
        contexts: One context per client; node k is client k. They keep what a client stores between rounds.
        streams: Whether the strategy reads each reply once and in order. Then each client runs only when its reply is
            asked for, and one reply is alive at a time. Otherwise replies come as a list, emptied when the next
            messages are sent (`Strategy.start` would keep them alive for another round).
        journal: Where replies of a round are found if the run was cut off after them.
        seed: Of what clients draw from the global generators, which depends on client and round only.
        own: The processes that train a client together with this one.
        faults: Failures to simulate.
        min_fit_clients: With fewer successful replies to "train" the run ends.
        on_failure: Told client, round, the reason in one line, and the traceback if there is one.
        numel: Numbers in the whole of an array, from its name and shape; of a model that is split, records hold parts.
    """

    def __init__(
        self,
        app: ClientApp,
        contexts: Sequence[Context],
        *,
        streams: bool = False,
        journal: Journal | None = None,
        seed: int = 0,
        own: Ranks = ALONE,
        faults: Faults | None = None,
        min_fit_clients: int = 0,
        on_failure: OnFailure = lambda client_id, server_round, reason, details: None,
        numel: Callable[[str, Sequence[int]], int] = lambda name, shape: math.prod(shape),
    ) -> None:
        self.app = app
        self.contexts = list(contexts)
        self.streams = streams
        self._journal, self._seed, self._own, self._faults = journal, seed, own, faults
        self._min_fit_clients, self._on_failure = min_fit_clients, on_failure
        self._numel = numel
        self.sent = self.received = 0  # bytes of the arrays that the server sent and got in the present round
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
        self.sent = self.received = 0

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
        return list(self._enough([self._pending.pop(message_id) for message_id in message_ids]))

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """The replies to `messages`, in order. Clients here always answer, so `timeout` is not needed."""
        self._last_replies.clear()
        accepted = [self._accept(message) for message in messages]
        if self.streams:
            return self._enough(accepted)
        self._last_replies = list(self._enough(accepted))
        return self._last_replies

    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """Run the clients that these accepted messages go to, one by one."""
        yield from map(self.deliver, messages)

    def _enough(self, messages: list[Message]) -> Iterator[Message]:
        """The replies; too few that can be used are found when all have come."""
        asked = succeeded = 0
        self.sent += sum(self._bytes(message.content) for message in messages)
        for reply in self.replies(messages):
            self.received += 0 if reply.has_error() else self._bytes(reply.content)
            if reply.metadata.message_type == MessageType.TRAIN:
                asked, succeeded = asked + 1, succeeded + (not reply.has_error())
            yield reply
            del reply  # or it would stay alive while the next client trains
        if asked and succeeded < self._min_fit_clients:
            raise TooFewClients(
                f"round {self._round}: {succeeded} of {asked} clients succeeded, fewer than "
                f"min_fit_clients={self._min_fit_clients}"
            )

    def _bytes(self, content: RecordDict) -> int:
        records = (standing_for(record) for record in content.array_records.values())
        arrays = (item for record in records for item in record.items())
        return sum(self._numel(name, array.shape) * itemsize(array) for name, array in arrays)

    def _accept(self, message: Message) -> Message:
        """The message with an id and with containers of its own: strategies send one `RecordDict` to every client."""
        message.content = RecordDict({key: copied(record) for key, record in message.content.items()})
        return self.numbered(message)

    def deliver(self, message: Message) -> Message:
        """Run the client that an accepted message goes to; its reply, which may be an error."""
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        context = self.contexts[node]
        self._asked[kind, node] += 1
        number = self._asked[kind, node]
        try:
            if self._journal is None:
                return self.numbered(self._attempt(message, context, number))
            what = f"{kind}-{node}-{number}"
            run = functools.partial(self._attempt, message, context, number)
            return self.numbered(self._journal.answer(self._round, what, message, context, run))
        except Failed as error:
            reason, details = str(error), ""
        except CannotGoOn:  # no fault of the client's
            raise
        except Exception as error:
            if self._own.count > 1:  # the others wait for this process
                raise
            reason, details = f"{type(error).__name__}: {error}", traceback.format_exc()
        reason = " ".join(reason.split()) or "no reason given"
        self._on_failure(_client_id(context), self._round, reason, details)
        return self.numbered(Message(Error(0, reason), reply_to=message))

    def _attempt(self, message: Message, context: Context, number: int) -> Message:
        """What the client answers.

        Raises:
            Failed: If that cannot be used.
        """
        node, kind, client_id = message.metadata.dst_node_id, message.metadata.message_type, _client_id(context)
        sent = arrays(message) if kind == MessageType.TRAIN else None
        if sent is not None and self._faults is not None:
            self._faults.before(client_id, self._round)
        with seeded_globals(self._seed, f"client {kind}", node, self._round, number):
            reply = self.app(message, context)
        if reply.has_error():
            raise Failed(reply.error.reason)
        if sent is not None:
            if self._faults is not None:
                self._faults.after(client_id, self._round, sent, reply)
            check_reply(sent, reply, self._own)
        return reply

    def numbered(self, message: Message) -> Message:
        """The message, with a number that no other has."""
        message.metadata.__dict__["_message_id"] = str(next(self._ids))
        return message


def _client_id(context: Context) -> int:
    return int(context.node_config["partition-id"])
