"""`RemoteGrid`: clients behind one of Flower's own grids, numbered like those of `LocalGrid`."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fed.distributed.stop import Stop
from fed.errors import CannotContinue, Failed
from fed.foreign import one_line, printable
from fed.grids.base import CountingGrid
from fed.grids.nodes import Nodes
from fed.grids.pull import pull
from fed.grids.replies import arrays_of, check_reply
from fed.grids.settings import RemoteGridSettings
from fed.model.arrays import copied, same_arrays

POLL = 0.2  # seconds between two looks for replies
# Keys in the config of every message to a client: its number, the digests of the server's model as JSON, a name of
# the run by which clients find what they stored of it, and the settings of the run.
CLIENT, MODEL, RUN, SETTINGS = "client-id", "model", "run", "settings"


Reply = Message | Failed  # of a node, whose bytes may not be readable


class RemoteGrid(CountingGrid):
    """Flower's grid with clients 0, 1, ... in place of its node ids, which are drawn anew for every run.

    Messages tell a client its number and the values of `settings.message_config`.
    """

    settings: RemoteGridSettings

    def __init__(self, grid: Grid, settings: RemoteGridSettings) -> None:
        super().__init__(settings)
        self._grid = grid
        self.nodes = Nodes(grid, None if settings.simulated else settings.message_config)
        self._shared: list[_Shared] = []
        self._pending: dict[str, Message] = {}
        self._since = time.monotonic()  # something was sent or asked for, or a round began
        self._stop = Stop()

    def begin(self, server_round: int) -> None:
        """Begin a round: the messages from now on belong to it."""
        super().begin(server_round)
        self._since = time.monotonic()

    def gather(self, expected: int) -> None:
        """Wait for `expected` clients; when the time is up, fewer suffice, but no fewer than `min_fit_clients`.

        Raises:
            CannotContinue: If too few come.
        """
        deadline = time.monotonic() + self.settings.wait
        self.nodes.expected = expected
        while (online := len(self.nodes.online())) < expected:
            if time.monotonic() > deadline:
                if online < max(self.settings.min_fit_clients, 1):
                    raise CannotContinue(self._too_few(online))
                print(f"{online} of {expected} clients are online; continuing without the others", flush=True)
                break
            self._stop.check()
            time.sleep(POLL)

    def set_run(self, run: Any) -> None:
        """Set the run this grid works for."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """Return the run this grid works for."""
        return self._grid.run

    def get_node_ids(self) -> Iterable[int]:
        """Return the clients whose nodes are online, in order.

        Raises:
            CannotContinue: If nothing could be sent for too long; strategies ask until there are enough nodes.
        """
        found = self.nodes.online()
        if time.monotonic() > self._since + self.settings.wait:
            raise CannotContinue(self._too_few(len(found)))
        return found

    def _too_few(self, online: int) -> str:
        return (
            f"too few clients for process_timeout={self.settings.wait:g} seconds: {self.nodes.described(online)}; "
            "start more of them or lower client_num_in_total or clients_per_round"
        )

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages and return their ids; `pull_messages` returns the replies."""
        accepted = [self.accept(message) for message in messages]
        ids = [found for found in self._push(accepted) if found is not None]
        if len(ids) < len(accepted):
            raise CannotContinue(f"round {self.server_round}: Flower did not take all of {len(accepted)} messages")
        self._pending.update(zip(ids, accepted, strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that have come."""
        found = self._pull(message_ids)
        return [self._taken(self._pending.pop(message_id), reply) for message_id, reply in found.items()]

    def accept(self, message: Message) -> Message:
        """Give the message records of its own, with arrays that all messages of these arrays share, and return it."""
        own: dict[str, Any] = {}
        for key, record in message.content.items():
            own[key] = self._shared_by(record).of if isinstance(record, ArrayRecord) else copied(record)
        message.content = RecordDict(own)
        return message

    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """Send the messages and yield the replies in their order; a reply that comes before its turn waits."""
        sent = list(zip(self._push(messages), messages, strict=True))
        waiting, found = {message_id for message_id, _ in sent if message_id is not None}, dict[str, Reply]()
        deadline = time.monotonic() + (self.settings.timeout or math.inf)
        for message_id, message in sent:
            if message_id is None:
                yield self._failed(message, "its node has left")
                continue
            while message_id not in found:
                is_last = time.monotonic() > deadline  # a reply may have come while the server did something else
                found |= self._pull(waiting)
                waiting -= found.keys()
                if message_id in found or is_last:
                    break
                self._stop.check()
                time.sleep(POLL)
            if message_id in found:
                yield self._taken(message, found.pop(message_id))
            else:
                waiting.discard(message_id)
                yield self._failed(message, f"no answer within client_timeout={self.settings.timeout:g} seconds")

    def _pull(self, message_ids: Iterable[str]) -> dict[str, Reply]:
        """Return the replies that have come, by the id of the message that they answer."""
        found: dict[str, Reply] = {}
        for message_id in message_ids:
            try:
                if (reply := pull(self._grid, message_id)) is not None:
                    found[message_id] = reply
            except Failed as error:
                found[message_id] = error
        self._since = time.monotonic()
        return found

    def _push(self, messages: list[Message]) -> list[str | None]:
        """Send accepted messages and return their ids; None for a message whose node has left."""
        nodes = self.nodes.by_client()
        sent = []
        for message in messages:
            meta, content = message.metadata, RecordDict()
            for key, record in message.content.items():
                content[key] = self._packed(record) if isinstance(record, ArrayRecord) else copied(record)
            if not content.config_records:
                content["config"] = ConfigRecord()
            next(iter(content.config_records.values())).update(
                {CLIENT: meta.dst_node_id, **self.settings.message_config}
            )
            sent.append(
                Message(content, nodes[meta.dst_node_id], meta.message_type, ttl=meta.ttl, group_id=meta.group_id)
            )
        ids: list[str | None] = list(self._grid.push_messages(sent))
        if len(ids) < len(sent):
            raise CannotContinue(f"round {self.server_round}: Flower did not take all of {len(sent)} messages")
        self._shared.clear()
        self._since = time.monotonic()
        return ids

    def _shared_by(self, record: ArrayRecord) -> "_Shared":
        """Pack arrays for the wire once, although a strategy sends them to all clients of a round."""
        for shared in self._shared:
            if same_arrays(shared.of, record):
                return shared
        self._shared.append(_Shared(record, self.settings.wire.pack(record)))
        return self._shared[-1]

    def _packed(self, record: ArrayRecord) -> ArrayRecord:
        return next(shared.packed for shared in self._shared if shared.of is record)

    def _taken(self, message: Message, reply: Reply) -> Message:
        """Return the client's reply in the form in which the strategy gets it; an error if it cannot be used."""
        if isinstance(reply, Failed):
            return self._failed(message, str(reply))
        if reply.has_error():
            return self._failed(message, reply.error.reason)
        sent, kind, content = message.content.array_records, message.metadata.message_type, reply.content
        try:
            self.settings.expected.check(kind, sent.keys(), content)
            for key, record in list(content.array_records.items()):
                content[key] = self.settings.wire.unpack(record, sent[key])
            if kind == MessageType.TRAIN:
                check_reply(arrays_of(message), reply)
            metrics = self._scored(kind, content)
        except Failed as error:
            return self._failed(message, str(error))
        except Exception as error:  # whatever a client may send: the others go on
            return self._failed(message, f"its reply cannot be read: {type(error).__name__}: {error}")
        self.settings.on_reply(message.metadata.dst_node_id, self.server_round, kind, metrics)
        return Message(reply.content, reply_to=message)

    def _scored(self, kind: str, content: RecordDict) -> MetricRecord:
        """Return the metrics of a reply, with the server's own score of its arrays if there is one.

        Raises:
            Failed: If the arrays cannot be scored.
        """
        metrics = next(iter(content.metric_records.values()))
        arrays = next(iter(content.array_records.values()), None)
        if kind == MessageType.TRAIN and self.settings.score is not None and arrays is not None:
            metrics["accuracy"] = self.settings.score(arrays)
        return metrics

    def _failed(self, message: Message, reason: str | None) -> Message:
        """Report a failure and return it as the reply; the first line of `reason` goes to the strategy."""
        reason, _, details = (reason or "").partition("\n")
        reason, details = one_line(reason) or "no reason given", printable(details)
        self.settings.on_failure(message.metadata.dst_node_id, self.server_round, reason, details)
        return Message(Error(0, reason), reply_to=message)


@dataclass(frozen=True)
class _Shared:
    """Arrays that go to several clients, as the strategy has them and as they travel."""

    of: ArrayRecord
    packed: ArrayRecord
