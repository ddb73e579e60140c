import inspect
import random

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fed.grid import LocalGrid


def contexts(count: int) -> list[Context]:
    return [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in range(count)]


def counting_app(ran: list[int]) -> ClientApp:
    """Counts visits in its context and answers with its number."""
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
    grid = LocalGrid(counting_app(ran), contexts(3), streams=True)
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


def test_a_client_that_fails_ends_the_run():
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if message.metadata.dst_node_id == 0:
            raise ZeroDivisionError("broken")
        return Message(Error(1, "out of memory"), reply_to=message)

    grid = LocalGrid(app, contexts(2))
    with pytest.raises(ZeroDivisionError, match="broken"):
        list(grid.send_and_receive(messages(content(), [0])))
    with pytest.raises(RuntimeError, match="client 1 failed: out of memory"):
        list(grid.send_and_receive(messages(content(), [1])))


def test_flowers_sampling_draws_from_the_grid():
    random.seed(3)
    grid = LocalGrid(counting_app([]), contexts(10))
    strategy = FedAvg(fraction_train=0.3, min_train_nodes=1, min_available_nodes=1)
    drawn = list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
    assert len({message.metadata.dst_node_id for message in drawn}) == 3


def test_flower_still_has_the_private_names_that_the_grid_relies_on():
    """Fails first when Flower is upgraded past what was checked: read its grid and message code again then."""
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
