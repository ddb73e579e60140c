"""`GroupGrid`: clients trained by several groups of processes at once, each process with its part of every array."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message
from flwr.clientapp import ClientApp

from fed.distributed.ranks import Ranks
from fed.errors import Stopped
from fed.grids.local import LocalGrid
from fed.grids.outline import ArrayOutline, Outline, filled, outline
from fed.grids.settings import LocalGridSettings
from fed.model.arrays import RemoteArrays, to_record, to_tensors


class GroupGrid(LocalGrid):
    """A grid whose clients are shared out to groups of processes; all processes run the same strategy beside it.

    A client that keeps arrays between rounds stays with the group that holds them; the others go where least is to do.

    Args:
        app: The app that every client runs.
        contexts: One context per client; after each round all groups have the same contexts, but for arrays.
        settings: The settings of the grid. If the strategy streams, each group hands it the replies of its own clients
            as they come, and `RemoteArrays` in place of the others' arrays. Otherwise every process gets all replies.
        groups: This process and those at its place in the other groups.
        work: The expected cost of each client's round, in any unit.
        exchange: Called in all groups when all clients of a round are done.
    """

    def __init__(
        self,
        app: ClientApp,
        contexts: Sequence[Context],
        settings: LocalGridSettings,
        *,
        groups: Ranks,
        work: Sequence[float],
        exchange: Callable[[], None],
    ) -> None:
        super().__init__(app, contexts, settings)
        self._groups, self._work, self._exchange = groups, work, exchange
        self._holders: dict[int, int] = {}  # the group that holds a client's arrays

    def replies(self, messages: list[Message]) -> Iterator[Message]:
        """Run this group's clients and yield the replies of all clients.

        Raises:
            Stopped: In all groups, if a client of any of them was stopped.
        """
        nodes = [message.metadata.dst_node_id for message in messages]
        owners = share_out(nodes, self._work, self._holders, self._groups.count)
        kept: dict[int, Message] = {}
        outlines: dict[int, tuple[str | Outline, Outline]] = {}  # of the reply, or why there is none; of the context
        stopped = 0
        for place in [place for place, owner in enumerate(owners) if owner == self._groups.index]:
            try:
                reply = self.deliver(messages[place])
            except Stopped as error:  # the other groups stop too, when their present clients let them
                stopped = error.number
                break
            result = str(reply.error.reason) if reply.has_error() else outline(reply.content)
            outlines[place] = result, outline(self.contexts[nodes[place]].state)
            if self.settings.streams:
                yield reply
            else:
                kept[place] = reply
            del reply  # or it would stay alive while the next client trains
        if stopped := self._groups.largest(stopped):
            raise Stopped(stopped)
        every = {place: result for found in self._groups.gather(outlines) for place, result in found.items()}
        self._exchange()
        for place, message in enumerate(messages):
            content, state = every[place]
            self._remember(nodes[place], owners[place], state)
            if not (self.settings.streams and owners[place] == self._groups.index):  # else it is yielded already
                yield self.numbered(self._reply(message, owners[place], content, kept.pop(place, None)))

    def state_dict(self) -> dict[str, Any]:
        """Return which group holds each client's arrays."""
        return {"holders": self._holders}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._holders = dict(state["holders"])

    def _remember(self, node: int, owner: int, outlined: Outline) -> None:
        """Store what a client left in its context, but for arrays, which the group that trained it has."""
        state = self.contexts[node].state
        if owner != self._groups.index:
            for key, record in filled(outlined, lambda _: ArrayRecord()).items():
                state[key] = record
        if any(isinstance(found, list) and found for found in outlined.values()):
            self._holders[node] = owner

    def _reply(self, message: Message, owner: int, result: str | Outline, own: Message | None) -> Message:
        """Return a client's reply as all groups get it; the owner of the client has it in `own`."""
        if isinstance(result, str):  # the client failed
            return Message(Error(0, result), reply_to=message)
        if self.settings.streams:
            sent = next(iter(message.content.array_records.values()), ArrayRecord())
            return Message(filled(result, lambda _: RemoteArrays(sent)), reply_to=message)

        def arrays(key: str) -> ArrayRecord:
            found = result[key]
            assert isinstance(found, list)
            return self._from_owner(owner, found, None if own is None else own.content.array_records[key])

        return Message(filled(result, arrays), reply_to=message)

    def _from_owner(self, owner: int, outlines: list[ArrayOutline], own: ArrayRecord | None) -> ArrayRecord:
        """Return, in all groups, the arrays that the owner has in `own`."""
        sent = {} if own is None else to_tensors(own)
        groups = self._groups
        return to_record({a.name: groups.tensor_from(owner, sent.get(a.name), a.shape, a.dtype) for a in outlines})


def share_out(nodes: Sequence[int], work: Sequence[float], holders: Mapping[int, int], groups: int) -> list[int]:
    """Return the group of each node: its holder, or the one with the least work so far, the longest work first."""
    loads, owner = [0.0] * groups, {}
    for node in sorted(nodes, key=lambda node: (node not in holders, -work[node], node)):
        owner[node] = holders.get(node, loads.index(min(loads)))
        loads[owner[node]] += work[node]
    return [owner[node] for node in nodes]
