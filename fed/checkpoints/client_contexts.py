"""What clients store between rounds: a context for each of them that was ever asked, however many there are."""

from collections.abc import Sequence

from flwr.app import Context, RecordDict


class Contexts(Sequence[Context]):
    """One context per client, made when it is first asked for; node k is the k-th of `client_ids`."""

    def __init__(self, client_ids: Sequence[int]) -> None:
        self._client_ids = client_ids
        self._made: dict[int, Context] = {}
        self._asked: set[int] = set()

    def __len__(self) -> int:
        return len(self._client_ids)

    def __getitem__(self, node: int) -> Context:  # type: ignore[override]  # there are no slices of clients
        if node not in self._made:
            config = {"partition-id": self._client_ids[node], "num-partitions": len(self)}
            self._made[node] = Context(0, node, config, RecordDict(), {})  # type: ignore[arg-type]
        self._asked.add(node)
        return self._made[node]

    def asked(self) -> dict[int, Context]:
        """Those that were asked for since this was called last, by node: no other can have changed."""
        asked, self._asked = sorted(self._asked), set()
        return {node: self._made[node] for node in asked}


def asked(contexts: Sequence[Context]) -> dict[int, Context]:
    """The contexts that may have changed since this was called last, by node."""
    return contexts.asked() if isinstance(contexts, Contexts) else dict(enumerate(contexts))
