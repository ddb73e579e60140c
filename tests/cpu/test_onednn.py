"""Linear layers by oneDNN against float64, and what they leave to torch."""

import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from fed.cpu import onednn
from fed.cpu.onednn import linear_layers, onednn_linear, use_onednn, uses_onednn

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def calls(monkeypatch):
    """Row counts of the inputs that oneDNN multiplied in forward passes."""
    seen = []

    def counted(input, weight, bias):
        seen.append(input.shape[:-1].numel())
        return onednn_linear(input, weight, bias)

    monkeypatch.setattr(onednn, "onednn_linear", counted)
    return seen


def layer_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    layer = {"plain": nn.Linear(7, 5), "no bias": nn.Linear(7, 5, bias=False), "gpt2": Conv1D(5, 7)}[kind]
    nn.init.normal_(layer.weight)
    return layer


def results(layer: nn.Module, input: torch.Tensor, gradient: torch.Tensor) -> list[torch.Tensor]:
    """Return the output and the gradients of input and parameters."""
    input = input.clone().requires_grad_()
    output = layer(input)
    return [output, *torch.autograd.grad(output, (input, *layer.parameters()), gradient)]


def close(found: torch.Tensor, exact: torch.Tensor) -> bool:
    return found.shape == exact.shape and bool((found - exact).norm() <= 1e-5 * exact.norm())


@pytest.mark.parametrize("shape", [(7,), (1, 7), (33, 7), (2, 3, 7)])
@pytest.mark.parametrize("kind", ["plain", "no bias", "gpt2"])
def test_output_and_all_gradients_are_those_of_float64(kind, shape, calls):
    layer = layer_of(kind)
    exact_layer = copy.deepcopy(layer).double()
    use_onednn(layer)
    input, gradient = torch.randn(shape), torch.randn(*shape[:-1], 5)
    exact = results(exact_layer, input.double(), gradient.double())
    assert all(map(close, results(layer, input, gradient), exact))
    assert calls == [input.shape[:-1].numel()]


@pytest.mark.parametrize("kind", ["plain", "gpt2"])
def test_gradients_of_strided_inputs_and_of_a_sum_are_right(kind):
    layer = layer_of(kind)
    exact_layer = copy.deepcopy(layer).double()
    use_onednn(layer)
    input, gradient = torch.randn(6, 14).t()[::2].t(), torch.ones(()).expand(6, 5)
    assert not input.is_contiguous() and gradient.stride() == (0, 0)
    exact = results(exact_layer, input.double(), gradient.double())
    assert all(map(close, results(layer, input, gradient), exact))


@pytest.mark.parametrize("kind", ["plain", "gpt2"])
def test_weight_gradients_lie_in_memory_as_the_weights_do(kind):
    layer = layer_of(kind)
    use_onednn(layer)
    (gradient,) = torch.autograd.grad(layer(torch.randn(3, 7)).square().sum(), layer.weight)  # backward() would copy
    assert gradient.stride() == layer.weight.stride()


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
def test_frozen_parameters_get_no_gradient_and_the_rest_does(frozen):
    layer = layer_of("plain")
    use_onednn(layer)
    input = torch.randn(3, 7, requires_grad=True)
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(frozen not in (name, "both"))
    layer(input).sum().backward()
    assert input.grad is not None
    assert all((parameter.grad is not None) == parameter.requires_grad for parameter in layer.parameters())


@pytest.mark.parametrize("reason", ["dtype", "autocast", "no rows"])
def test_what_is_not_float32_with_rows_is_left_to_torch(reason, calls):
    layer, input = layer_of("plain"), torch.randn(0 if reason == "no rows" else 3, 7)
    use_onednn(layer)
    if reason == "dtype":
        layer, input = layer.double(), input.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=reason == "autocast"):
        output = layer(input)
    assert output.dtype == {"dtype": torch.float64, "autocast": torch.bfloat16}.get(reason, torch.float32)
    assert output.shape == (len(input), 5) and calls == []


class Doubled(nn.Linear):
    """A linear layer that computes something else."""

    def forward(self, input):
        return 2 * super().forward(input)


def test_layers_that_compute_something_else_keep_doing_so(calls):
    layer = Doubled(7, 5)
    input = torch.randn(3, 7)
    before = layer(input)
    use_onednn(nn.Sequential(layer))
    assert torch.equal(layer(input), before) and calls == []


def test_names_classes_and_copies_stay_what_they_were(calls):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=1, n_head=2, n_positions=8))
    names, classes = list(model.state_dict()), [type(module) for module in model.modules()]
    assert not uses_onednn(model)
    use_onednn(model)
    assert uses_onednn(model)
    assert list(model.state_dict()) == names and [type(module) for module in model.modules()] == classes
    copied = copy.deepcopy(model)
    with torch.no_grad():
        copied.lm_head.weight.zero_()
    assert not copied(input_ids=torch.arange(5)[None]).logits.any()
    assert calls == [5] * 5  # four Conv1D of a block and the head


def test_an_adapter_and_the_layer_below_it_are_both_multiplied(calls):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["0"])
    for first in ("oneDNN", "adapter"):
        model = nn.Sequential(layer_of("plain"))
        exact = copy.deepcopy(model).double()
        if first == "oneDNN":
            use_onednn(model)
        adapted = peft.get_peft_model(model, config)
        if first == "adapter":
            use_onednn(adapted)
        input = torch.randn(3, 7)
        calls.clear()
        assert close(adapted(input), exact(input.double()))
        assert len(calls) == {"oneDNN": 1, "adapter": 3}[first]


def test_heads_and_blocks_are_found_and_embeddings_are_not():
    model = GPT2LMHeadModel(GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=8))
    assert {type(layer) for layer in linear_layers(model)} == {nn.Linear, Conv1D}
    assert len(list(linear_layers(model))) == 2 * 4 + 1
