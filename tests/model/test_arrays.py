import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from torch import nn

from fed.model.arrays import TensorArray, load_arrays, model_tensors, snapshot, to_record, to_tensors


class Tied(nn.Module):
    """A tied pair of weights, a frozen parameter, and buffers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 3, bias=False)
        self.second = nn.Linear(2, 3, bias=False)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("scale", torch.tensor([1.0, 2.0]))
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("table", torch.ones(4), persistent=False)


def test_what_travels_is_trainable_or_a_persistent_float_buffer_and_tied_weights_once():
    assert list(model_tensors(Tied())) == ["first.weight", "scale"]


def test_loading_a_snapshot_restores_the_model_with_its_ties():
    model = Tied()
    record = snapshot(model_tensors(model))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.first.weight.add_(1.0)
        model.scale.add_(1.0)
    load_arrays(model, record)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.second.weight is model.first.weight


def test_a_snapshot_does_not_follow_the_model():
    model = Tied()
    record = snapshot(model_tensors(model))
    with torch.no_grad():
        model.first.weight.zero_()
    assert to_tensors(record)["first.weight"].abs().sum() > 0


def test_flower_reads_the_same_numbers_through_numpy_and_through_bytes():
    tensor = torch.randn(3, 2)
    array = TensorArray(tensor)
    assert np.array_equal(array.numpy(), tensor.numpy())
    theirs = Array(dtype=array.dtype, shape=array.shape, stype=array.stype, data=array.data)
    assert np.array_equal(theirs.numpy(), tensor.numpy())
    assert Array(tensor.numpy()).object_id == theirs.object_id == array.object_id


def test_a_strategy_may_write_into_the_numpy_array_it_is_given():
    tensor = torch.zeros(3)
    array = TensorArray(tensor)
    array.numpy()[:] = 1.0
    assert torch.equal(tensor, torch.zeros(3))
    assert to_tensors(to_record({"w": tensor}))["w"] is tensor


def test_bfloat16_weights_travel_as_float32_and_come_back_the_same():
    model = nn.Linear(3, 3).to(torch.bfloat16)
    before = model.weight.detach().clone()
    record = snapshot(model_tensors(model))
    assert record["weight"].dtype == "float32"
    load_arrays(model, record)
    assert torch.equal(model.weight, before)


def test_float64_arrays_are_cast_on_load():
    model = nn.Linear(2, 1, bias=False)
    load_arrays(model, ArrayRecord({"weight": Array(np.array([[0.1, 0.2]]))}))
    assert torch.equal(model.weight.detach(), torch.tensor([[0.1, 0.2]]))


def test_names_and_shapes_that_do_not_match_are_refused():
    model = nn.Linear(2, 1, bias=False)
    with pytest.raises(ValueError, match="1 names differ"):
        load_arrays(model, to_record({"weight": torch.zeros(1, 2), "bias": torch.zeros(1)}))
    with pytest.raises(ValueError, match=r"shape \(2, 1\), expected \(1, 2\)"):
        load_arrays(model, to_record({"weight": torch.zeros(2, 1)}))
