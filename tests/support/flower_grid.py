"""A stand-in for Flower's own grid in this process: random node ids, replies when pulled, messages that can be read."""

import itertools
import random
from collections.abc import Callable, Collection, Iterable
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fed.grids.replies import Expected


class Anything(Expected):
    """A server that takes whatever records a reply has."""

    def check(self, kind: str, keys: Collection[str], content: RecordDict) -> None: ...


Tamper = Callable[[Message], None]


class FlowerGrid(Grid):
    """Nodes with an app and a configuration; every message is serialised on its way, as Flower does."""

    def __init__(self, nodes: list[tuple[ClientApp, dict[str, Any]]], run_config: dict[str, Any] | None = None) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 0
        ids = random.Random(0).sample(range(10**6, 10**9), len(nodes))
        self.contexts = {
            node: Context(7, node, config, RecordDict(), run_config or {})
            for node, (_, config) in zip(ids, nodes, strict=True)
        }
        self.apps = dict(zip(ids, (app for app, _ in nodes), strict=True))
        self.online = set(ids)
        self.sent: list[bytes] = []  # to clients
        self.received: list[tuple[str, bytes, Message]] = []  # from clients: kind, bytes, and the message
        self.silent: set[int] = set()  # nodes that never answer
        self.on_pull: Callable[[], None] = lambda: None
        self.hostile_server: Tamper = lambda message: None  # changes a message on its way to a node
        self.hostile_node: Tamper = lambda reply: None  # changes a reply on its way to the server
        self.hostile_bytes: Callable[[dict[str, bytes]], None] | None = (
            None  # changes the objects that a reply is sent as
        )
        self._waiting: dict[str, Message] = {}
        self._ids = itertools.count(1)

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(7)

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return set(self.online)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        found = []
        for message in messages:
            number = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = number
            self.sent.append(recorddict_to_proto(message.content).SerializeToString())
            self._waiting[number] = message
            found.append(number)
        return found

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.on_pull()
        found = []
        for number in reversed(list(message_ids)):  # not in the order they were sent
            message = self._waiting[number]
            node = message.metadata.dst_node_id
            if node not in self.online:
                found.append(Message(Error(5, "Node Unavailable"), reply_to=self._waiting.pop(number)))
            elif node not in self.silent:
                found.append(self.answer(self._waiting.pop(number)))
        return found

    def answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        message.content = recorddict_from_proto(recorddict_to_proto(message.content))
        self.hostile_server(message)
        reply = self.apps[node](message, self.contexts[node])
        if reply.has_error():
            self.received.append((message.metadata.message_type, reply.error.reason.encode(), reply))
            return reply
        self.hostile_node(reply)
        if self.hostile_bytes is not None:
            contents = {key: each.deflate() for key, each in get_all_nested_objects(reply.content).items()}
            self.hostile_bytes(contents)
            reply.content = inflate_object_from_contents(reply.content.object_id, contents)
        content = recorddict_to_proto(reply.content)
        self.received.append((message.metadata.message_type, content.SerializeToString(), reply))
        reply.content = recorddict_from_proto(content)
        return reply

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise NotImplementedError
