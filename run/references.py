"""The pairs of a run with their reference column, filled in before training or at a client's first visit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import ArrayRecord

from clients.app import ClientPairs
from fed.data.examples import Example, Examples
from fed.files import inside
from fed.model.arrays import load_arrays
from fed.model.policy import OnPairs, Policy
from fed.model.references import with_reference
from fed.tracking.log import Log
from run.plan import Pairs, Plan

# Returns examples with their reference column, by the model's present weights; reports pairs that are done.
Fill = Callable[[Sequence[Example], OnPairs], Examples]


@dataclass(frozen=True)
class Columns:
    """The computation of the reference column of a run's pairs.

    The column comes from the weights before training, so whoever fills it in later loads these weights first.
    """

    fill: Fill  # before training, by all processes of the run
    fill_at_visit: Fill  # by the processes that train the client
    visit: Callable[[], AbstractContextManager[None]]  # inside, the model has the weights before training
    supervised: bool  # the loss needs no column of training pairs
    accuracy_on: str  # a client's result is scored on the pairs of: server | client | test


def columns_of(plan: Plan, initial: ArrayRecord, model_hash: str, log: Log) -> Columns:
    """Return how a run computes its reference column, with `initial` the weights before training."""

    @contextmanager
    def visit() -> Iterator[None]:
        with log.phase("reference"):
            load_arrays(plan.policy.model, initial)
            yield

    def fill_with(policy: Policy) -> Fill:
        def fill(examples: Sequence[Example], on_pairs: OnPairs) -> Examples:
            return with_reference(
                policy,
                examples,
                batch_size=plan.config.eval_batch_size,
                cache=inside(Path(plan.config.cache_dir), "reference"),
                weights_hash=model_hash,
                on_pairs=on_pairs,
            )

        return fill

    return Columns(
        fill=fill_with(plan.shared_policy),
        fill_at_visit=fill_with(plan.client_policy),
        visit=visit,
        supervised=plan.objective.supervised,
        accuracy_on=plan.config.accuracy_on,
    )


def _ignore(pairs: int) -> None:
    """Ignore which pairs are done."""


class ReferencedPairs:
    """The pairs of a run with their reference column; `pairs[client_id]` are those of one client.

    A client's pairs are filled in at its first visit, unless `fill_before_training` did so. Either way the column
    depends on the client's own pairs alone, whichever clients were visited before. If this process has the pairs of one
    client only, they are found under every number.

    Args:
        pairs: The pairs without the column.
        columns: How the column is computed.
        keep: How many clients' pairs stay in memory, those asked for last; None: all.
    """

    def __init__(self, pairs: Pairs, columns: Columns, keep: int | None = None) -> None:
        self._pairs, self._columns, self._keep = pairs, columns, keep
        self._evaluated: dict[str, Examples] = {}  # by the value of `accuracy_on` that names them
        self._clients: dict[int, ClientPairs] = {}  # those asked for last stand at the end

    def __getitem__(self, client_id: int) -> ClientPairs:
        key = client_id if len(self._pairs.clients) > 1 else 0
        found = self._clients.pop(key) if key in self._clients else self._visited(key)
        self._clients[key] = found
        if self._keep is not None and len(self._clients) > self._keep:
            del self._clients[next(iter(self._clients))]
        return found

    @property
    def validation(self) -> Examples:
        """The server's pairs, filled in before training by whoever asks first."""
        return self._evaluated_on("server")

    @property
    def test(self) -> Examples:
        """The test pairs, filled in before training by whoever asks first."""
        return self._evaluated_on("test")

    def fill_before_training(self, report: Callable[[int, int], None], *, clients: bool) -> None:
        """Fill in the server's pairs and the test pairs now and, if asked to, those of all clients.

        Training pairs are filled in together, in batches of like length. Evaluated lists are filled in one by one, in
        the batches that evaluation uses, so that the untrained model ties exactly with its reference.

        Args:
            report: Receives the number of pairs that are done, and of all pairs.
            clients: True to fill in the clients' pairs too.
        """
        filled = self._pairs.clients if clients else []
        train = Examples.joined(Examples.of(client.train) for client in filled)
        lists = [self._pairs.validation, self._pairs.test, *(client.held_out for client in filled)]
        total = sum(map(len, lists)) + (0 if self._columns.supervised else len(train))
        done = 0

        def on_pairs(pairs: int) -> None:
            nonlocal done
            done += pairs
            report(done, total)

        if train and not self._columns.supervised:
            train = self._columns.fill(train, on_pairs)
        for name in ("server", "test"):
            self._evaluated_on(name, on_pairs)
        start = 0
        for client_id, client in enumerate(filled):
            held_out = self._columns.fill(client.held_out, on_pairs)
            self._clients[client_id] = self._complete(train.part(start, start + len(client.train)), held_out)
            start += len(client.train)

    def _visited(self, client_id: int) -> ClientPairs:
        own, columns = self._pairs.clients[client_id], self._columns
        with columns.visit():
            held_out = columns.fill_at_visit(own.held_out, _ignore)
            train = own.train if columns.supervised else columns.fill_at_visit(own.train, _ignore)
            return self._complete(train, held_out)

    def _complete(self, train: Sequence[Example], held_out: Sequence[Example]) -> ClientPairs:
        name = self._columns.accuracy_on
        return ClientPairs(train, held_out, held_out if name == "client" else self._evaluated_on(name))

    def _evaluated_on(self, name: str, on_pairs: OnPairs = _ignore) -> Examples:
        if name not in self._evaluated:
            examples = {"server": self._pairs.validation, "test": self._pairs.test}[name]
            self._evaluated[name] = self._columns.fill(examples, on_pairs)
        return self._evaluated[name]
