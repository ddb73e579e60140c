"""Arrays on the wire: float32 as they are, bfloat16 as differences."""

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fed.grids.local import LocalGrid
from fed.grids.remote import RemoteGrid
from fed.grids.settings import LocalGridSettings, RemoteGridSettings
from fed.grids.wire import AS_IT_IS, Wire, unpacking
from fed.model.arrays import to_record, to_tensors
from support.flower_grid import Anything, FlowerGrid


def test_weights_of_another_wire_dtype_are_refused():
    halved = Wire("bfloat16", {"w": torch.zeros(3)})
    packed = halved.pack(to_record({"w": torch.ones(3)}))
    with pytest.raises(ValueError, match="travels as bfloat16, expected float32"):
        AS_IT_IS.unpack(packed)
    with pytest.raises(ValueError, match="travels as float32, expected bfloat16"):
        halved.unpack(AS_IT_IS.pack(to_record({"w": torch.ones(3)})))


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0,)])
def test_a_difference_loses_at_most_its_last_bits(shape):
    torch.manual_seed(0)
    initial, weights = torch.randn(shape), torch.randn(shape) * 1e-6
    wire = Wire("bfloat16", {"w": initial})
    record = to_record({"w": initial + weights})
    arrived = to_tensors(wire.unpack(wire.pack(record)))["w"]
    assert arrived.shape == initial.shape and arrived.dtype == torch.float32
    moved = (initial + weights) - initial
    assert torch.all((arrived - (initial + weights)).abs() <= moved.abs() * 2**-8 + initial.abs() * 2**-23)
    assert torch.equal(arrived, to_tensors(wire.travelled(record))["w"])
    received, sent = to_record({"w": initial + 1}), to_record({"w": initial + 0.999})
    again = wire.unpack(wire.pack(record, received), sent)
    assert torch.equal(to_tensors(again)["w"], to_tensors(wire.returned(record, received, sent))["w"])
    assert all(len(array.data) == 2 * initial.numel() for array in wire.pack(record).values())


def test_what_has_not_changed_arrives_bit_for_bit():
    initial = torch.randn(100)
    wire = Wire("bfloat16", {"w": initial})
    assert torch.equal(to_tensors(wire.travelled(to_record({"w": initial.clone()})))["w"], initial)


def test_rounding_on_the_way_to_the_client_does_not_add_up_over_600_rounds():
    """Each client moves its weights by 1e-6; after 600 rounds the server has moved by their sum, not by less."""
    torch.manual_seed(0)
    initial = torch.randn(1000, dtype=torch.float64).float() * 0.02
    wire, weights, step = Wire("bfloat16", {"w": initial}), initial.clone(), torch.full((1000,), 1e-6)
    for _ in range(600):
        sent = to_record({"w": weights})
        received = wire.travelled(sent)
        trained = to_record({"w": to_tensors(received)["w"] + step})
        weights = to_tensors(wire.returned(trained, received, sent))["w"]
    moved = (weights - initial).mean()
    assert moved == pytest.approx(600e-6, rel=0.01)


def client(*mods, step=0.0):
    """Return an app that moves every weight by `step`."""
    app = ClientApp(mods=list(mods))

    @app.query()
    def query(message, context):
        return Message(RecordDict({"metrics": MetricRecord({})}), reply_to=message)

    @app.train()
    def train(message, context):
        weights = to_tensors(message.content.array_records["arrays"])["w"]
        content = {"arrays": to_record({"w": weights + step}), "metrics": MetricRecord({"num-examples": 1})}
        return Message(RecordDict(content), reply_to=message)

    return app


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_grid_adds_small_steps_to_weights_that_are_far_from_the_initial_ones(where):
    """One bit of the way out, 2^-8 of 1e-3, is four times a step: added to what was received, all would be lost."""
    initial = torch.full((100,), 0.02)
    wire, weights = Wire("bfloat16", {"w": initial}), initial + 1e-3
    if where == "here":
        grid = LocalGrid(
            client(step=1e-6), [Context(0, 0, {"partition-id": 0}, RecordDict(), {})], LocalGridSettings(wire=wire)
        )
    else:
        flower = FlowerGrid([(client(unpacking(wire), step=1e-6), {"partition-id": 0})])
        how = {"message_config": {}, "wait": 10.0, "simulated": False, "timeout": None, "on_reply": lambda *_: None}
        settings = RemoteGridSettings(**how, wire=wire, expected=Anything())
        grid = RemoteGrid(flower, settings)
        grid.gather(1)
    for _ in range(10):
        content = {"arrays": to_record({"w": weights}), "config": ConfigRecord({"server-round": 1})}
        (reply,) = grid.send_and_receive([Message(RecordDict(content), 0, MessageType.TRAIN)])
        weights = to_tensors(reply.content["arrays"])["w"]
    assert (weights - initial).double().mean() == pytest.approx(1e-3 + 10e-6, rel=1e-4)
