"""The client number of each Flower node: a new node is asked for its number, or is given one."""

import itertools
from collections.abc import Mapping

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fed.config.flower import PARTITION_ID
from fed.errors import Failed
from fed.foreign import one_line
from fed.grids.pull import pull


class Nodes:
    """The numbers of the nodes of a grid, whose ids are drawn anew for every run.

    A node's number is the `partition-id` of its configuration, or the smallest that is free. A node that answers with
    an error is left out until it has been offline: then it may have been mended.

    Args:
        grid: Flower's grid.
        question: The config of the question to a new node; None: no node is asked, and a simulated node is the client
            that its message names.
    """

    def __init__(self, grid: Grid, question: Mapping[str, str] | None) -> None:
        self._grid, self._question = grid, question
        self._clients: dict[int, int] = {}  # by node
        self._waiting: dict[str, int] = {}  # nodes that have not answered, by message
        self._refused: set[int] = set()
        self.expected: int | None = None  # no client has this number or a larger one

    def online(self) -> list[int]:
        """Return the clients whose nodes are online, in order; new nodes are asked, and count once they answer."""
        online = set(self._grid.get_node_ids())
        self._refused &= online
        new = sorted(online - self._clients.keys() - self._refused - set(self._waiting.values()))
        if self._question is None:
            self._clients.update(zip(new, itertools.count(len(self._clients))))
        else:
            self._ask(new, self._question)
            self._hear(online)
        return sorted(client for node, client in self._clients.items() if node in online)

    def by_client(self) -> dict[int, int]:
        """Return the node of each client."""
        return {client: node for node, client in self._clients.items()}

    def described(self, online: int) -> str:
        """Describe how many nodes are online, silent or refused."""
        silent = f", {len(self._waiting)} still preparing (give them a longer process_timeout)" if self._waiting else ""
        refused = f", {len(self._refused)} cannot take part (see above why)" if self._refused else ""
        return f"{online} online{silent}{refused}"

    def _ask(self, nodes: list[int], question: Mapping[str, str]) -> None:
        """Ask new nodes for their number, and to get ready."""
        if nodes:
            contents = (RecordDict({"config": ConfigRecord({**question})}) for _ in nodes)
            messages = [
                Message(content, node, MessageType.QUERY) for content, node in zip(contents, nodes, strict=True)
            ]
            sent = zip(self._grid.push_messages(messages), nodes, strict=True)
            self._waiting.update({message: node for message, node in sent if message is not None})  # None: it has left

    def _hear(self, online: set[int]) -> None:
        """Give numbers to the nodes that have answered, first to those that have a number of their own.

        A number belongs to the last node that names it, once the one before is gone: it is the same client.
        """
        if not self._waiting:
            return
        own: list[tuple[bool, int, int]] = []
        for message_id, node in list(self._waiting.items()):
            try:
                if (answer := pull(self._grid, message_id)) is None:
                    continue
                wanted = _own_number(answer)
            except Failed as error:
                self._refuse(node, str(error))
            else:
                own.append((wanted is None, wanted or 0, node))
            del self._waiting[message_id]
        taken = self.by_client()
        for without, wanted, node in sorted(own):
            if not without and wanted in taken and taken[wanted] not in online:
                del self._clients[taken.pop(wanted)]
            free = next(k for k in itertools.count() if k not in taken)
            number = free if without or wanted in taken else wanted
            if number < 0 or (self.expected is not None and number >= self.expected):
                self._refuse(node, f"it would be client {number}, but client_num_in_total={self.expected}")
            else:
                self._clients[node], taken[number] = number, node

    def _refuse(self, node: int, reason: str) -> None:
        """Leave out a node and print why."""
        self._refused.add(node)
        print(f"node {node} cannot take part: {one_line(reason)}", flush=True)


def _own_number(answer: Message) -> int | None:
    """Return the number that a node has of its own; None: it has none.

    Raises:
        Failed: If it answers with an error, or with anything but one record of metrics with that number or nothing.
    """
    if answer.has_error():
        raise Failed((answer.error.reason or "no reason given").partition("\n")[0])
    metrics = list(answer.content.metric_records.values())
    if len(metrics) != 1 or len(answer.content) != 1 or metrics[0].keys() - {PARTITION_ID}:
        raise Failed(f"it answers with other records than one of metrics with {PARTITION_ID}, or with none")
    wanted = metrics[0].get(PARTITION_ID)
    if wanted is not None and not isinstance(wanted, int):
        raise Failed(f"its {PARTITION_ID} is {str(wanted)[:40]}; expected a whole number")
    return wanted
