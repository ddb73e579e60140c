"""Clients behind a grid of Flower's: their numbers, those that come late, stay silent or go away."""

import time

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

import fed.grids.remote
from fed.errors import CannotContinue, TooFewClients
from fed.grids.remote import RemoteGrid
from fed.grids.settings import RemoteGridSettings
from fed.grids.wire import AS_IT_IS
from fed.model.arrays import to_record, to_tensors
from support.flower_grid import Anything, FlowerGrid


def client(seen, *, answers=True):
    """Return an app that adds its number to what it gets; `seen` collects the config of each message."""
    app = ClientApp()

    @app.query()
    def query(message, context):
        seen.append(dict(message.content.config_records["config"]))
        if not answers:
            raise ValueError("not ready")
        own = {"partition-id": context.node_config["partition-id"]} if "partition-id" in context.node_config else {}
        return Message(RecordDict({"metrics": MetricRecord(own)}), reply_to=message)

    @app.train()
    def train(message, context):
        config = message.content.config_records["config"]
        seen.append(dict(config))
        record = ArrayRecord({"w": message.content.array_records["arrays"]["w"]})
        record = ArrayRecord([record.to_numpy_ndarrays()[0] + config["client-id"]])
        arrays = ArrayRecord({"w": next(iter(record.values()))})
        return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"n": 1})}), reply_to=message)

    return app


def made(configs, **how):
    """Return a grid over nodes with these configurations, Flower's grid, what nodes saw and what was reported."""
    seen, told = [], []
    flower = FlowerGrid([(client(seen), config) for config in configs])
    usual = {"message_config": {"model": "abc"}, "wait": 10.0, "simulated": False, "timeout": None, "wire": AS_IT_IS}
    usual["expected"] = Anything()
    usual["on_failure"] = lambda *failure: told.append(failure)
    usual["on_reply"] = lambda *reply: told.append(reply)
    return RemoteGrid(flower, RemoteGridSettings(**{**usual, **how})), flower, seen, told


def messages(clients):
    shared = RecordDict({"arrays": to_record({"w": torch.ones(3)}), "config": ConfigRecord({"server-round": 1})})
    return [Message(shared, k, MessageType.TRAIN) for k in clients]


def sums(replies):
    return [
        (r.metadata.src_node_id, None if r.has_error() else float(to_tensors(r.content["arrays"])["w"].sum()))
        for r in replies
    ]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(fed.grids.remote, "POLL", 0.01)


def test_nodes_are_numbered_by_their_partition_and_answer_in_order():
    grid, _, seen, told = made([{"partition-id": 2}, {"partition-id": 0}, {}])
    grid.gather(3)
    assert list(grid.get_node_ids()) == [0, 1, 2]
    assert sums(grid.send_and_receive(messages([2, 0, 1]))) == [(2, 9.0), (0, 3.0), (1, 6.0)]
    assert [(k, kind) for k, _, kind, _ in told] == [(2, "train"), (0, "train"), (1, "train")]
    assert {"model": "abc", "client-id": 1, "server-round": 1} in seen
    assert (grid.sent, grid.received) == (3 * 12, 3 * 12)


def test_a_number_that_two_nodes_claim_goes_to_one_of_them():
    grid, *_ = made([{"partition-id": 1}, {"partition-id": 1}])
    grid.gather(2)
    assert list(grid.get_node_ids()) == [0, 1]


def test_a_client_that_goes_offline_is_left_out_and_comes_back():
    grid, flower, _, told = made([{"partition-id": 0}, {"partition-id": 1}])
    grid.gather(2)
    node = next(n for n, context in flower.contexts.items() if context.node_config["partition-id"] == 1)
    flower.silent.add(node)
    flower.on_pull = lambda: flower.online.discard(node)
    assert sums(grid.send_and_receive(messages([0, 1]))) == [(0, 3.0), (1, None)]
    assert told[-1] == (1, 1, "Node Unavailable", "")
    assert list(grid.get_node_ids()) == [0]
    flower.on_pull = lambda: None
    flower.silent.clear()
    flower.online.add(node)
    assert list(grid.get_node_ids()) == [0, 1]
    assert sums(grid.send_and_receive(messages([1]))) == [(1, 6.0)]


def test_a_client_that_does_not_answer_in_time_is_left_out():
    grid, flower, _, told = made([{"partition-id": 0}, {"partition-id": 1}], timeout=0.2, min_fit_clients=2)
    grid.gather(2)
    flower.silent.add(next(n for n, c in flower.contexts.items() if c.node_config["partition-id"] == 0))
    with pytest.raises(TooFewClients, match="1 of 2 clients succeeded"):
        list(grid.send_and_receive(messages([0, 1])))
    assert told[0] == (0, 1, "no answer within client_timeout=0.2 seconds", "")
    assert told[1][:3] == (1, 1, "train")


def test_nodes_that_come_later_are_asked_and_take_part():
    grid, flower, *_ = made([{"partition-id": 0}, {"partition-id": 1}], min_fit_clients=1, wait=1.0)
    late = next(n for n, c in flower.contexts.items() if c.node_config["partition-id"] == 0)
    flower.online.discard(late)
    grid.gather(2)  # goes on without it
    grid.begin(1)
    assert list(grid.get_node_ids()) == [1]
    flower.online.add(late)
    assert list(grid.get_node_ids()) == [0, 1]


def test_a_client_that_comes_back_as_another_node_is_the_same_client():
    """A SuperNode without a registered key gets a new id whenever it is started."""
    grid, flower, *_ = made([{"partition-id": 0}, {"partition-id": 1}, {"partition-id": 1}])
    old, new = (n for n, context in flower.contexts.items() if context.node_config["partition-id"] == 1)
    flower.online.discard(new)
    grid.gather(2)
    flower.online.discard(old)
    flower.online.add(new)
    assert list(grid.get_node_ids()) == [0, 1]
    assert sums(grid.send_and_receive(messages([1]))) == [(1, 6.0)]
    assert grid.nodes.by_client()[1] == new


def test_who_is_offline_does_not_count_when_clients_are_gathered():
    grid, flower, *_ = made([{"partition-id": 0}, {"partition-id": 1}], min_fit_clients=2, wait=0.5)
    list(grid.get_node_ids())
    flower.online.pop()
    with pytest.raises(CannotContinue, match="1 online"):
        grid.gather(2)


def test_a_message_that_flower_does_not_take_is_a_failure_of_its_client(monkeypatch):
    grid, flower, _, told = made([{"partition-id": 0}, {"partition-id": 1}])
    grid.gather(2)
    node, push = grid.nodes.by_client()[0], flower.push_messages
    monkeypatch.setattr(
        flower,
        "push_messages",
        lambda sent: [None if m.metadata.dst_node_id == node else next(iter(push([m]))) for m in sent],
    )
    assert sums(grid.send_and_receive(messages([0, 1]))) == [(0, None), (1, 6.0)]
    assert told[0] == (0, 1, "its node has left", "")


def test_a_reply_that_came_while_the_server_was_busy_is_read():
    grid, flower, *_ = made([{"partition-id": 0}, {"partition-id": 1}], timeout=0.2)
    grid.gather(2)
    found = []
    flower.silent.add(grid.nodes.by_client()[1])
    for reply in grid.replies([grid.accept(message) for message in messages([0, 1])]):
        found.append(reply)
        flower.silent.clear()
        time.sleep(0.3)
    assert sums(found) == [(0, 3.0), (1, 6.0)]


def test_rounds_that_take_long_are_no_lack_of_clients():
    grid, flower, *_ = made([{"partition-id": 0}], wait=0.3)
    grid.gather(1)
    flower.on_pull = lambda: time.sleep(0.4)
    assert sums(grid.send_and_receive(messages([0]))) == [(0, 3.0)]
    assert list(grid.get_node_ids()) == [0]


def test_a_node_that_refuses_is_asked_again_when_it_was_away(capsys):
    seen = []
    flower = FlowerGrid([(client(seen), {}), (client(seen, answers=False), {})])
    how = {"message_config": {"model": "abc"}, "timeout": None, "wire": AS_IT_IS, "on_reply": lambda *_: None}
    flower.answer, answer = lambda message: told(message), flower.answer

    def told(message):
        try:
            return answer(message)
        except ValueError as error:
            return Message(Error(0, str(error)), reply_to=message)

    grid = RemoteGrid(
        flower, RemoteGridSettings(wait=0.5, simulated=False, min_fit_clients=2, expected=Anything(), **how)
    )
    grid.gather(1)
    assert len(seen) == 2 and "cannot take part: not ready" in capsys.readouterr().out
    refused = next(node for node in flower.online if node not in grid.nodes.by_client().values())
    list(grid.get_node_ids())
    assert len(seen) == 2  # as long as it stays, it is not asked again
    flower.online.discard(refused)
    list(grid.get_node_ids())
    flower.online.add(refused)
    list(grid.get_node_ids())
    assert len(seen) == 3
    with pytest.raises(CannotContinue, match=r"too few clients .* 1 online, 1 cannot take"):
        grid.gather(2)


def test_simulated_nodes_are_not_asked_but_told_who_they_are():
    grid, flower, seen, _ = made([{"partition-id": 2}, {"partition-id": 0}, {"partition-id": 1}], simulated=True)
    grid.gather(3)
    assert list(grid.get_node_ids()) == [0, 1, 2] and not seen
    assert sums(grid.send_and_receive(messages([2, 0, 1]))) == [(2, 9.0), (0, 3.0), (1, 6.0)]
    assert [kind for kind, *_ in flower.received] == ["train"] * 3


@pytest.mark.parametrize("config", [{}, {"partition-id": 2}, {"partition-id": -1}])
def test_a_client_too_many_cannot_take_part(config, capsys):
    grid, *_ = made([{"partition-id": 0}, {"partition-id": 1}, config])
    grid.gather(2)
    assert list(grid.get_node_ids()) == [0, 1]
    assert "client_num_in_total=2" in capsys.readouterr().out


def test_a_strategy_that_waits_for_more_clients_than_come_ends_the_run():
    grid, *_ = made([{}], wait=0.5)
    grid.gather(1)
    grid.begin(1)
    with pytest.raises(CannotContinue, match="1 online"):
        while True:
            list(grid.get_node_ids())
            time.sleep(0.05)


def test_a_reply_that_no_aggregate_can_use_is_an_error():
    grid, flower, _, told = made([{"partition-id": 0}])
    app = next(iter(flower.apps.values()))

    def spoiled(message, context):
        reply = app(message, context)
        if "arrays" in reply.content:
            reply.content["arrays"] = ArrayRecord([np.full(3, np.nan, dtype=np.float32)])
        return reply

    flower.apps = dict.fromkeys(flower.apps, spoiled)
    grid.gather(1)
    assert sums(grid.send_and_receive(messages([0]))) == [(0, None)]
    assert "its arrays have other names" in told[0][2]


def test_a_reply_that_cannot_be_read_is_an_error():
    for array in (Array("float32", (3,), "numpy.ndarray", b"no array"), Array("float32", (3,), "pickle", b"x")):
        grid, flower, _, told = made([{"partition-id": 0}])
        app = next(iter(flower.apps.values()))

        def spoiled(message, context, app=app, array=array):
            reply = app(message, context)
            if "arrays" in reply.content:
                reply.content["arrays"] = ArrayRecord({"w": array})
            return reply

        flower.apps = dict.fromkeys(flower.apps, spoiled)
        grid.gather(1)
        assert sums(grid.send_and_receive(messages([0]))) == [(0, None)]
        assert "its reply cannot be read" in told[0][2]
