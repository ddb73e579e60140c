"""Tests of a round's cost with many clients of which few are sampled: nothing grows with the others.

No times are measured but calls of Python functions, which a machine cannot distort, and allocated bytes.
"""

import json
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from clients.app import ClientPairs
from fed.checkpoints.checkpointer import Checkpointer
from fed.checkpoints.contexts import Contexts, accessed
from fed.checkpoints.journal import Journal
from fed.data.examples import Example, Examples
from fed.data.splits import Split
from fed.data.tokens import Cuts
from fed.distributed.ranks import ALONE, ONE_PROCESS
from fed.distributed.shards import Shards
from fed.grids.settings import LocalGridSettings
from fed.model.arrays import load_arrays, model_tensors, snapshot, to_record
from fed.model.policy import OnPairs, Policy
from fed.model.references import weights_hash, with_reference
from fed.seeding import seed_globals
from fed.simulation import Persistence, ServerSide, simulate
from fed.tracking.log import Recorder
from fed.tracking.tracker import Tracker
from run.data import OwnedRows
from run.plan import Pairs
from run.references import Columns, Fill, ReferencedPairs
from server.app import server_app
from server.state import StrategyState
from server.strategies import FeDPO
from support.command_line import CommandLine
from support.pairs import examples

FEW, MANY = 20, 2000
ROUNDS = 4


class Rounds:
    """A counter of calls and of bytes that stay allocated, between the ends of two rounds."""

    def __init__(self) -> None:
        self.calls, self.bytes = list[int](), list[int]()
        self._count = self._before = 0

    def end(self) -> None:
        sys.setprofile(None)
        now = tracemalloc.get_traced_memory()[0]
        self.calls.append(self._count)
        self.bytes.append(now - self._before)
        self._count, self._before = 0, now
        sys.setprofile(self._called)

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        self._count += event == "call"

    @contextmanager
    def counted(self) -> Iterator[None]:
        tracemalloc.start()
        try:
            yield
        finally:
            sys.setprofile(None)
            tracemalloc.stop()


def client_app(visits: ReferencedPairs, tracker: Tracker, persists: bool) -> ClientApp:
    """Return an app that answers with what it was sent, and stores counters and, if it persists, an array."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client, number = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])  # type: ignore[arg-type, call-overload, index]
        pairs = visits[client]
        tracker.start_client(number, client, len(pairs.train))
        tracker.update(client, "train", {"loss/train": 1.0}, step=number)
        tracker.client(client, number, "validation", {"accuracy": 0.5})
        context.state["client"] = MetricRecord({"updates": number})
        if persists:
            context.state["optimizer"] = to_record({"w": torch.full((8,), float(number))})
        metrics = MetricRecord({"num-examples": len(pairs.train), "accuracy": 0.5})
        return Message(RecordDict({"arrays": message.content["arrays"], "metrics": metrics}), reply_to=message)

    return app


def pairs_of(clients: Sequence[ClientPairs], validation: Sequence[Example] = ()) -> Pairs:
    split = Split(validation=[], test=[], pool=[], parts=[], clients=[], overlapping=0)
    return Pairs(OwnedRows(split, {}, (), ()), Cuts(), validation, [], clients, clients)


def columns_of(fill: Fill, **changes: Any) -> Columns:
    usual = {"visit": nullcontext, "supervised": False, "accuracy_on": "client"}
    return Columns(fill=fill, fill_at_visit=fill, **{**usual, **changes})


def fill_nothing(pairs: Sequence[Example], on_pairs: OnPairs) -> Examples:
    return Examples.of(pairs)


def run(folder: Path, num_clients: int, *, persists: bool = False) -> Rounds:
    """Run a federation of two clients a round that keeps and reports as a run of main.py does, without a model."""
    rounds, strategy = Rounds(), FeDPO(fraction_train=2 / num_clients, min_train_nodes=2, min_available_nodes=1,
                                       fraction_evaluate=0.0, decay_rate=1.0)  # fmt: skip
    model = nn.Linear(2, 2)
    initial = snapshot(model_tensors(model))
    pairs = pairs_of([ClientPairs(examples(2))] * num_clients)
    checkpointer = Checkpointer(
        folder / "checkpoints", ONE_PROCESS, Shards(model), {}, every=1, last=2, num_rounds=ROUNDS
    )
    seed_globals(0, "test")
    with rounds.counted(), Tracker(folder, num_rounds=ROUNDS, clients_per_round=2) as tracker:
        log = Recorder(tracker)
        journal = Journal(folder / "checkpoints", 0, ALONE, checkpointer.files, log, checkpointer.run)

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            tracker.server(server_round, "validation", {"accuracy": 0.5})
            tracker.clients_done(server_round)
            rounds.end()
            return MetricRecord({"validation_accuracy": 0.5})

        server = ServerSide(
            partial(server_app, strategy=strategy, train_config=ConfigRecord(), num_rounds=ROUNDS),
            initial,
            evaluate,
            Persistence(checkpointer, {"strategy": StrategyState(strategy), "log": tracker}),
        )
        client = client_app(ReferencedPairs(pairs, columns_of(fill_nothing)), tracker, persists)
        simulate(server, client, range(num_clients), LocalGridSettings(streams=True, journal=journal))
    return rounds


@pytest.mark.parametrize("persists", [False, True])
def test_a_round_calls_no_more_functions_and_keeps_no_more_bytes_with_a_hundred_times_the_clients(
    tmp_path: Path, persists: bool
) -> None:
    """Rounds 2 to 4 count, because the first one imports and caches. Of 20 clients the same may be sampled twice.

    An object for each of 2,000 clients would be 110 kB a round; what else ran in this process moves the sum by 30 kB.
    """
    run(tmp_path / "warm", FEW, persists=persists)
    few = run(tmp_path / "few", FEW, persists=persists)
    many = run(tmp_path / "many", MANY, persists=persists)
    assert len(few.calls) == len(many.calls) == ROUNDS + 1
    assert max(many.calls[2:]) < 1.2 * max(few.calls[2:])
    assert sum(many.bytes[2:]) < sum(few.bytes[2:]) + 100_000


def test_contexts_exist_for_clients_that_were_asked_only() -> None:
    tracemalloc.start()
    contexts = Contexts(range(10**6))
    assert len(contexts) == 10**6 and contexts[999_999].node_config["partition-id"] == 999_999
    assert contexts[5] is contexts[5]
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert list(accessed(contexts)) == [5, 999_999]
    assert list(accessed(contexts)) == []
    contexts[5].state["seen"] = MetricRecord({"n": 1})
    assert list(accessed(contexts)) == [5]


def test_other_sequences_of_contexts_may_have_changed_everywhere() -> None:
    contexts = [Context(0, node, {}, RecordDict(), {}) for node in range(3)]
    assert list(accessed(contexts)) == list(accessed(contexts)) == [0, 1, 2]


# The reference column of a client, at its first visit


def visits(policy: Policy, clients: list[ClientPairs], told: list[int], **changes: Any) -> ReferencedPairs:
    def fill(pairs: Any, on_pairs: Any) -> Any:
        told.append(len(pairs))
        return with_reference(policy, pairs, batch_size=4, cache=None, weights_hash="", on_pairs=on_pairs)

    initial = snapshot(model_tensors(policy.model))

    @contextmanager
    def visit() -> Iterator[None]:
        load_arrays(policy.model, initial)
        yield

    validation = changes.pop("validation", [])
    return ReferencedPairs(pairs_of(clients, validation), columns_of(fill, visit=visit, **changes))


def test_a_clients_column_depends_neither_on_training_nor_on_who_was_met_before(policy: Policy) -> None:
    clients = [ClientPairs(examples(5 + k, seed=k), examples(2, seed=9 + k)) for k in range(3)]
    expected = [with_reference(policy, client.train, batch_size=4, cache=None, weights_hash="") for client in clients]
    found = visits(policy, clients, told := [])
    for k in (2, 0, 1):
        assert found[k].train == expected[k]
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(1)
    assert [len(found[k].scoring) for k in range(3)] == [2, 2, 2]
    assert found[2] is found[2] and len(told) == 6, "once for each list of pairs"


def test_a_supervised_loss_needs_no_column_of_training_pairs(policy: Policy) -> None:
    own = [ClientPairs(examples(5), examples(2))]
    found = visits(policy, own, told := [], supervised=True, accuracy_on="server", validation=examples(3))
    assert found[0].train[0].reference is None and told == [2, 3]
    assert found[0].scoring is found.validation and len(found.validation) == 3


def test_references_are_computed_for_sampled_clients_only(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[int] = []

    def counting(policy: Any, pairs: Any, **how: Any) -> Any:
        filled.append(len(pairs))
        return with_reference(policy, pairs, **how)

    monkeypatch.setattr("run.references.with_reference", counting)
    ran = command_line(
        "client_num_in_total=200", "clients_per_round=2", "comm_round=2", "local_steps=1", "n_eval_examples=8",
        "n_test_examples=8",
    )  # fmt: skip
    assert ran.code == 0
    lines = [json.loads(line) for line in (ran.run / "metrics.jsonl").read_text().splitlines()]
    sampled = {line["who"] for line in lines if line["split"] == "train"}
    assert filled[:2] == [8, 8] and len(filled) == 2 + 2 * len(sampled) <= 2 + 2 * 4
    assert sum(filled) < 16 + 4 * 10


def test_a_model_before_training_has_the_same_hash_after_a_visit(policy: Policy) -> None:
    before = weights_hash(policy)
    found = visits(policy, [ClientPairs(examples(5))], [])
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(1)
    assert found[0].train and weights_hash(policy) == before


def test_pairs_filled_in_before_training_have_the_columns_of_a_visit(policy: Policy) -> None:
    """The columns agree to rounding, because together they stand in other batches. Progress counts every pair once."""
    clients = [ClientPairs(examples(5 + k, seed=k), examples(2, seed=9 + k)) for k in range(3)]
    visited = visits(policy, clients, [])
    together = visits(policy, clients, told := [], validation=examples(4, seed=20))
    reported: list[tuple[int, int]] = []
    together.fill_before_training(lambda done, total: reported.append((done, total)), clients=True)
    assert told == [18, 4, 0, 2, 2, 2] and reported[-1] == (28, 28)
    for k in range(3):
        for ours, theirs in zip(together[k].train, visited[k].train, strict=True):
            assert ours.reference == pytest.approx(theirs.reference, rel=1e-5)
        assert together[k].held_out == visited[k].held_out
    assert len(told) == 6, "no visit follows"


def test_a_process_keeps_the_pairs_of_the_clients_that_were_asked_for_last() -> None:
    clients = [ClientPairs(examples(2, seed=k)) for k in range(3)]
    told: list[int] = []

    def fill(pairs: Sequence[Example], on_pairs: OnPairs) -> list[Example]:
        told.append(len(pairs))
        return list(pairs)

    found = ReferencedPairs(pairs_of(clients), columns_of(fill), keep=2)
    for k, lists in ((0, 2), (1, 4), (0, 4), (2, 6), (0, 6), (1, 8)):
        assert found[k].train == clients[k].train
        assert len(told) == lists, k


def test_the_pairs_of_an_only_client_are_found_under_every_number() -> None:
    client = ClientPairs(examples(2))
    found = ReferencedPairs(pairs_of([client]), columns_of(fill_nothing))
    assert found[7] is found[0] and found[7].train == client.train
