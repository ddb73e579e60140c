import gc
import inspect
import random
import weakref

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fed.errors import TooFewClients
from fed.grids.local import LocalGrid
from fed.grids.settings import LocalGridSettings
from fed.model.arrays import to_record


def contexts(count: int) -> list[Context]:
    return [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in range(count)]


def counting_app(ran: list[int]) -> ClientApp:
    """Return an app that counts visits in its context and answers with its number."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = context.node_config["partition-id"]
        ran.append(client)
        visits = context.state.metric_records.get("visits", MetricRecord({"n": 0}))["n"] + 1
        context.state["visits"] = MetricRecord({"n": visits})
        message.content["config"]["seen"] = client
        metrics = MetricRecord({"client": client, "visits": visits, "round": message.content["config"]["round"]})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def messages(record: RecordDict, nodes: list[int]) -> list[Message]:
    return [Message(record, node, "train") for node in nodes]


def content(server_round: int = 1) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"round": server_round}), "arrays": ArrayRecord()})


def test_replies_come_in_order_from_the_clients_addressed_and_contexts_persist():
    grid = LocalGrid(counting_app([]), contexts(3))
    for number, nodes in ((1, [2, 0]), (2, [0])):
        replies = list(grid.send_and_receive(messages(content(number), nodes)))
        assert [reply.metadata.src_node_id for reply in replies] == nodes
        found = [dict(reply.content["metrics"]) for reply in replies]
        assert found == [{"client": node, "visits": number if node == 0 else 1, "round": number} for node in nodes]


def test_every_client_gets_containers_of_its_own():
    """Flower's strategies put one `RecordDict` into all messages; the app above writes into it."""
    grid, record = LocalGrid(counting_app([]), contexts(2)), content()
    sent = messages(record, [0, 1])
    list(grid.send_and_receive(sent))
    assert "seen" not in record["config"]
    assert [message.content["config"]["seen"] for message in sent] == [0, 1]


def test_streaming_runs_a_client_only_when_its_reply_is_asked_for():
    ran: list[int] = []
    grid = LocalGrid(counting_app(ran), contexts(3), LocalGridSettings(streams=True))
    replies = iter(grid.send_and_receive(messages(content(), [0, 1, 2])))
    assert ran == []
    next(replies)
    assert ran == [0]


def test_without_streaming_replies_can_be_read_twice_and_are_freed_by_the_next_call():
    grid = LocalGrid(counting_app([]), contexts(2))
    first = grid.send_and_receive(messages(content(), [0, 1]))
    assert len(list(first)) == len(list(first)) == 2
    grid.send_and_receive(messages(content(), [0]))
    assert list(first) == []


def test_push_and_pull_answer_by_message_id():
    grid = LocalGrid(counting_app([]), contexts(2))
    ids = list(grid.push_messages(messages(content(), [0, 1])))
    assert len(set(ids)) == 2
    (reply,) = grid.pull_messages(ids[1:])
    assert (reply.metadata.src_node_id, reply.metadata.reply_to_message_id) == (1, ids[1])


def failing_app() -> ClientApp:
    """Node 0 raises, 1 answers with an error, 2 with another shape, 3 with NaN, 4 with no arrays, 5 as it should."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        node = message.metadata.dst_node_id
        if node == 0:
            raise ZeroDivisionError("broken\nbeyond repair")
        if node == 1:
            return Message(Error(1, "out of memory"), reply_to=message)
        tensors = {2: torch.zeros(3), 3: torch.tensor([1.0, torch.nan])}.get(node, torch.ones(2))
        loss = torch.inf if node == 6 else 0.5
        content = RecordDict({"metrics": MetricRecord({"loss": loss})})
        if node != 4:
            content["arrays"] = to_record({"a": tensors})
        return Message(content, reply_to=message)

    return app


@pytest.mark.parametrize("streams", [False, True])
def test_clients_that_fail_answer_with_their_reason(streams: bool):
    told = []
    settings = LocalGridSettings(streams=streams, on_failure=lambda *failure: told.append(failure))
    grid = LocalGrid(failing_app(), contexts(7), settings)
    grid.begin(4)
    record = RecordDict({"arrays": to_record({"a": torch.zeros(2)})})
    replies = list(grid.send_and_receive(messages(record, list(range(7)))))
    assert [reply.has_error() for reply in replies] == [True] * 5 + [False, True]
    reasons = [
        "ZeroDivisionError: broken beyond repair",
        "out of memory",
        "its a has shape (3,), expected (2,)",
        "its a is not finite",
        "its reply has no arrays under arrays",
        "its loss is inf",
    ]
    assert [reply.error.reason for reply in replies if reply.has_error()] == reasons
    assert [failure[:3] for failure in told] == [
        (client, 4, reason) for client, reason in zip([0, 1, 2, 3, 4, 6], reasons, strict=True)
    ]
    assert "line" in told[0][3] and not any(failure[3] for failure in told[1:])  # a traceback where code broke


@pytest.mark.parametrize("streams", [False, True])
def test_a_round_with_too_few_clients_ends_the_run(streams: bool):
    record = RecordDict({"arrays": to_record({"a": torch.zeros(2)})})
    for needed, nodes in ((2, [5, 0, 5]), (1, [5]), (0, [0])):
        grid = LocalGrid(failing_app(), contexts(7), LocalGridSettings(streams=streams, min_fit_clients=needed))
        assert len(list(grid.send_and_receive(messages(record, nodes)))) == len(nodes)
    grid = LocalGrid(failing_app(), contexts(7), LocalGridSettings(streams=streams, min_fit_clients=3))
    with pytest.raises(TooFewClients, match="round 1: 2 of 3 clients succeeded, fewer than min_fit_clients=3"):
        list(grid.send_and_receive(messages(record, [5, 0, 5])))


def test_what_clients_draw_depends_on_client_and_round_and_leaves_the_generators_alone():
    drawn: list[tuple[float, float, float]] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        drawn.append((random.random(), float(np.random.random()), float(torch.rand(()))))
        return Message(RecordDict(), reply_to=message)

    def draws(seed: int, server_round: int, nodes: list[int]) -> list[tuple[float, float, float]]:
        drawn.clear()
        grid = LocalGrid(app, contexts(2), LocalGridSettings(seed=seed))
        grid.begin(server_round)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        list(grid.send_and_receive(messages(content(), nodes)))
        assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        return list(drawn)

    first = draws(0, 1, [0, 1])
    assert draws(0, 1, [1, 0]) == first[::-1]
    others = [draws(0, 2, [0]), draws(1, 1, [0]), draws(0, 1, [0, 0])[1:], first[1:]]
    assert all(other[0] != first[0] for other in others)


def test_flowers_sampling_draws_from_the_grid():
    random.seed(3)
    grid = LocalGrid(counting_app([]), contexts(10))
    strategy = FedAvg(fraction_train=0.3, min_train_nodes=1, min_available_nodes=1)
    drawn = list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
    assert len({message.metadata.dst_node_id for message in drawn}) == 3


def test_flower_still_has_the_private_names_that_the_grid_relies_on():
    """This fails first when Flower is upgraded; read its grid and message code again then."""
    assert list(inspect.signature(Message.__init__).parameters)[1:] == ["args", *_MESSAGE_ARGUMENTS]
    for name in ("run_id", "node_id", "task_id"):
        assert name in vars(type(TaskIdentity))
    metadata = Metadata(0, "7", 1, 2, "", "", 0.0, 1.0, "train")
    assert metadata.__dict__["_message_id"] == "7"
    assert Run.create_empty(run_id=5).run_id == 5
    assert Grid.__abstractmethods__ == {
        "set_run", "run", "create_message", "get_node_ids", "push_messages", "pull_messages", "send_and_receive",
    }  # fmt: skip
    assert list(inspect.signature(Strategy.start).parameters) == [
        "self", "grid", "initial_arrays", "num_rounds", "timeout", "train_config", "evaluate_config", "evaluate_fn",
    ]  # fmt: skip


_MESSAGE_ARGUMENTS = [
    "dst_node_id", "message_type", "content", "error", "ttl", "group_id", "dst_task_id", "reply_to", "metadata",
]  # fmt: skip


def test_what_a_client_was_sent_is_free_when_it_is_done():
    """The garbage collector is off: it frees old objects once in many rounds only."""
    alive: list[int] = []
    app, tensors = ClientApp(), list[weakref.ref[torch.Tensor]]()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        gc.collect()  # as happens while a client trains: what is in use now is old from here on
        gc.disable()
        content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"n": 1})})
        return Message(content, reply_to=message)

    grid = LocalGrid(app, contexts(1), LocalGridSettings(streams=True))
    try:
        for number in range(3):
            tensor = torch.full((3,), float(number))
            tensors.append(weakref.ref(tensor))
            sent = RecordDict({"arrays": to_record({"w": tensor})})
            del tensor
            replies = grid.send_and_receive(messages(sent, [0]))
            del sent
            assert not any(reply.has_error() for reply in replies)
            del replies
            gc.collect(0)
            alive.append(sum(tensor() is not None for tensor in tensors))
    finally:
        gc.enable()
    assert alive == [0, 0, 0]
