"""Arrays on the wire: float32 as they are, bfloat16 as differences."""

import pytest
import torch

from fed.grids.wire import AS_IT_IS, Wire
from fed.model.arrays import to_record, to_tensors


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
