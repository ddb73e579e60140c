"""Optimizers and clipping against torch's own, bit by bit where they claim it."""

import math

import pytest
import torch

from clients import optimizers
from clients.optimizers import (
    BLOCK,
    RMSprop,
    clip_grad_norm,
    load_optimizer_state,
    make_optimizer,
    optimizer_state,
)

SHAPES = ((), (1,), (7,), (3, 5), (BLOCK,), (BLOCK + 13,), (2, BLOCK // 2 + 7), (0,))


def parameters(shapes=SHAPES, dtype=torch.float32, device="cpu") -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes]


def walk(optimizer, own, steps, *, seed=1) -> None:
    """So many steps on gradients of very different sizes, then a changed lr and as many again."""
    generator = torch.Generator().manual_seed(seed)
    for lr in (1e-2, 3e-3):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for step in range(steps):
            for parameter in own:
                gradient = torch.randn(parameter.shape, generator=generator) * 10.0 ** (-3 * step)
                parameter.grad = gradient.to(parameter)
            optimizer.step()


def same(ones, others) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def states(optimizer, own, slot) -> list[torch.Tensor]:
    return [optimizer.state[parameter][slot] for parameter in own]


@pytest.mark.parametrize(
    ("dtype", "foreach"),  # None is the plain loop on a CPU; in bfloat16 foreach itself differs from it
    [(torch.float32, None), (torch.float32, True), (torch.float64, None), (torch.bfloat16, None)],
)
def test_rmsprop_in_blocks_is_torchs_to_the_bit(dtype, foreach, device):
    """On a GPU it is torch's own step."""
    ours, theirs = (parameters(dtype=dtype, device=device) for _ in range(2))
    one, other = RMSprop(ours, lr=1e-2), torch.optim.RMSprop(theirs, lr=1e-2, foreach=foreach)
    walk(one, ours, 3)
    walk(other, theirs, 3)
    assert same(ours, theirs) and not same(ours[:1], parameters(dtype=dtype, device=device)[:1])
    for slot in ("step", "square_avg"):
        assert same(states(one, ours, slot), states(other, theirs, slot))


@pytest.mark.parametrize("threads", [2, 3])
def test_rmsprop_in_blocks_is_torchs_with_several_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        ours, theirs = parameters(), parameters()
        walk(RMSprop(ours, lr=1e-2), ours, 2)
        walk(torch.optim.RMSprop(theirs, lr=1e-2), theirs, 2)
    finally:
        torch.set_num_threads(before)
    assert same(ours, theirs)


def test_rmsprop_takes_parameters_and_gradients_that_are_not_contiguous(monkeypatch):
    monkeypatch.setattr(optimizers, "BLOCK", 4)
    ours, theirs = parameters([(5, 7), (6, 3)]), parameters([(5, 7), (6, 3)])
    for own in (ours, theirs):
        own[0].data = own[0].data.t()
    one, other = RMSprop(ours, lr=1e-2), torch.optim.RMSprop(theirs, lr=1e-2)
    for optimizer, own in ((one, ours), (other, theirs)):
        walk(optimizer, own, 1)
        own[1].grad = torch.arange(18.0).view(3, 6).t()
        optimizer.step()
    assert not ours[0].is_contiguous() and not ours[1].grad.is_contiguous()
    assert same(ours, theirs)


@pytest.mark.parametrize(
    "options", [{"momentum": 0.9}, {"centered": True}, {"weight_decay": 0.1}, {"maximize": True}, {"alpha": 0.5}]
)
def test_rmsprops_other_options_work_as_torchs(options):
    ours, theirs = parameters(), parameters()
    walk(RMSprop(ours, lr=1e-2, **options), ours, 2)
    walk(torch.optim.RMSprop(theirs, lr=1e-2, **options), theirs, 2)
    assert same(ours, theirs)


def test_rmsprop_leaves_parameters_without_gradient_alone_and_gives_what_the_closure_returns():
    own = parameters([(3,), (3,)])
    before = [parameter.detach().clone() for parameter in own]
    optimizer = RMSprop(own, lr=1e-2)

    def closure():
        loss = own[0].square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == before[0].square().sum()
    assert torch.equal(own[1], before[1]) and own[1] not in optimizer.state
    assert not torch.equal(own[0], before[0])


@pytest.mark.parametrize("first", ["ours", "torch's"])
def test_either_rmsprop_continues_from_the_state_of_the_other(first):
    kinds = [RMSprop, torch.optim.RMSprop] if first == "ours" else [torch.optim.RMSprop, RMSprop]
    moved, straight = parameters(), parameters()
    one, other, unbroken = kinds[0](moved, lr=1e-2), kinds[1](moved, lr=1e-2), torch.optim.RMSprop(straight, lr=1e-2)
    walk(one, moved, 2)
    other.load_state_dict(one.state_dict())
    walk(other, moved, 2, seed=2)
    walk(unbroken, straight, 2)
    walk(unbroken, straight, 2, seed=2)
    assert same(moved, straight)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD"])
def test_the_others_are_fused_and_agree_with_torchs_plain_form(name, device):
    ours, theirs = parameters(device=device), parameters(device=device)
    optimizer = make_optimizer(name, iter(ours), 1e-2)
    plain = getattr(torch.optim, name)(theirs, lr=1e-2, foreach=False, fused=False)
    assert type(optimizer) is type(plain) and all(group["fused"] for group in optimizer.param_groups)
    walk(optimizer, ours, 3)
    walk(plain, theirs, 3)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "RMSprop"])
def test_a_stored_state_continues_as_if_training_had_not_stopped(name, device):
    """The state travels by way of main memory; where a fused AdamW counts its steps, it counts them again."""
    broken, unbroken = (dict(zip("abcdefgh", parameters(device=device), strict=True)) for _ in range(2))
    first, straight = (make_optimizer(name, own.values(), 1e-2) for own in (broken, unbroken))
    walk(first, list(broken.values()), 2)
    stored = optimizer_state(first, broken)
    assert all(tensor.device.type == "cpu" for tensor in stored.values())
    second = make_optimizer(name, broken.values(), 1e-2)
    load_optimizer_state(second, broken, stored)
    walk(second, list(broken.values()), 2, seed=2)
    walk(straight, list(unbroken.values()), 2)
    walk(straight, list(unbroken.values()), 2, seed=2)
    assert same(broken.values(), unbroken.values())


def test_a_parameter_elsewhere_is_not_fused():
    optimizer = make_optimizer("AdamW", [torch.nn.Parameter(torch.empty(3, device="meta"))], 1e-2)
    assert not optimizer.param_groups[0]["fused"]


@pytest.mark.parametrize("name", ["RMSprop", "AdamW", "Adam", "SGD"])
def test_all_settings_but_the_speed_are_torchs_defaults(name):
    ours = make_optimizer(name, parameters([(3,)]), 1e-3).defaults
    theirs = getattr(torch.optim, name)(parameters([(3,)]), lr=1e-3).defaults
    assert {**ours, "fused": None} == {**theirs, "fused": None}


@pytest.mark.parametrize("size", [0.0, 1e-3, 0.999999, 1.0, 1.000001, 2.0, 1e6, math.inf, math.nan])
def test_clipping_is_torchs_to_the_bit(size, device):
    """Two gradients of norms 6 and 8, so 10 together, the bound, times `size`."""
    ours, theirs = (parameters([(3, 5), (7,), (2,)], device=device) for _ in range(2))
    for own in (ours, theirs):
        for parameter, share in zip(own, (0.6, 0.8), strict=False):
            parameter.grad = share * 10 * size * parameter.detach() / parameter.detach().norm()
    norm = clip_grad_norm(iter(ours), 10.0)
    expected = torch.nn.utils.clip_grad_norm_(theirs, 10.0)
    assert torch.equal(norm, expected) or (norm.isnan() and expected.isnan())
    assert ours[2].grad is None
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)


def test_one_gradient_that_is_not_a_number_makes_all_so_as_in_torch():
    own = parameters([(2,), (2,)])
    own[0].grad, own[1].grad = torch.tensor([math.nan, 1.0]), torch.ones(2)
    assert clip_grad_norm(own, 10.0).isnan()
    assert own[0].grad.isnan().all() and own[1].grad.isnan().all()


@pytest.mark.parametrize(("max_norm", "touched"), [(4.9, True), (5.1, False)])
def test_gradients_within_bounds_are_not_written(max_norm, touched):
    """3 and 4 have norm 5; each in-place operation raises a tensor's version."""
    (own,) = parameters([(2,)])
    own.grad = torch.tensor([3.0, 4.0])
    version = own.grad._version
    assert clip_grad_norm([own], max_norm) == 5
    assert (own.grad._version > version) == touched


def test_no_gradients_have_norm_zero():
    assert clip_grad_norm(parameters([(2,)]), 1.0) == 0


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_number_moves_in_every_precision(name, dtype, device):
    parameter = torch.nn.Parameter(torch.ones(70, dtype=dtype, device=device))
    parameter.grad = torch.ones_like(parameter)
    make_optimizer(name, [parameter], 0.1).step()
    assert (parameter < 1).all() and (parameter == parameter[0]).all()
