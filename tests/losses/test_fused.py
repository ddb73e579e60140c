"""The fused head against log_softmax of all logits at once, in float64."""

import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import losses.fused
from fed.cpu.onednn import onednn_product
from losses.fused import Head, blockwise_logps, blockwise_loss

VOCABULARY, WIDTH = 23, 5


@pytest.fixture(params=[1, 3, 1000], ids=lambda rows: f"blocks of {rows}")
def block_rows(request, monkeypatch):
    for name in ("BLOCK_BYTES", "GPU_BLOCK_BYTES"):
        monkeypatch.setattr(losses.fused, name, 4 * VOCABULARY * request.param)
    return request.param


def made(sizes, *, bias=True, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(sum(sizes), WIDTH, generator=generator).to(device).requires_grad_()
    weight = torch.randn(VOCABULARY, WIDTH, generator=generator).to(device).requires_grad_()
    offset = torch.randn(VOCABULARY, generator=generator).to(device).requires_grad_() if bias else None
    targets = torch.randint(VOCABULARY, (sum(sizes),), generator=generator)
    return hidden, weight, offset, targets.to(device)


def by_pair(first, last, logps):
    """Compute a different loss for every pair, so that mixed-up pairs show."""
    pair = torch.arange(first // 2, last // 2, device=logps.device)
    return (1 + pair) * torch.sigmoid((logps[1::2] - logps[0::2]) / (2 + pair)) + 0.01 * logps[0::2] ** 2


def mixing(first, last, logps):
    """Compute a loss that depends on all pairs at once."""
    margins = logps[0::2] - logps[1::2]
    return (margins - margins.mean()) ** 2


def plain(hidden, weight, bias, targets, sizes, loss):
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    bias = None if bias is None else bias.detach().double().requires_grad_()
    logits = hidden @ weight.t() if bias is None else hidden @ weight.t() + bias
    rows = logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)
    logps = torch.stack([part.sum() for part in torch.split(rows, sizes)])
    total = loss(0, len(sizes), logps).sum()
    total.backward()
    return total, logps, hidden.grad, weight.grad, None if bias is None else bias.grad


def check(sizes, *, bias, loss=by_pair, group=2, device="cpu"):
    hidden, weight, offset, targets = made(sizes, bias=bias, device=device)
    head = Head(weight, offset, torch.float32)
    total, logps = blockwise_loss(hidden, head, targets, sizes, loss, group=group)
    (3 * total).backward()  # whatever comes from above must be passed on
    exact_total, exact_logps, *exact = plain(hidden, weight, offset, targets, sizes, loss)
    torch.testing.assert_close(total.double(), exact_total, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logps.double(), exact_logps, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(blockwise_logps(hidden, head, targets, sizes), logps, rtol=1e-5, atol=1e-6)
    for found, gradient in zip((hidden, weight, offset), exact, strict=True):
        if found is not None:
            torch.testing.assert_close(found.grad.double() / 3, gradient, rtol=1e-5, atol=1e-5)
    assert not logps.requires_grad


@pytest.mark.parametrize("bias", [False, True])
def test_loss_log_probs_and_gradients_are_those_of_the_plain_path(block_rows, bias, device):
    check([2, 1, 4, 7, 1, 1], bias=bias, device=device)


@pytest.mark.parametrize("bias", [False, True])
def test_a_loss_that_mixes_pairs_is_exact_too_when_it_sees_all_of_them(block_rows, bias):
    check([2, 1, 4, 7, 1, 1], bias=bias, loss=mixing, group=6)


def test_a_loss_is_told_which_sequences_it_is_given(block_rows):
    told = []

    def loss(first, last, logps):
        told.append((first, last))
        assert len(logps) == last - first
        return by_pair(first, last, logps)

    hidden, weight, _, targets = made([2, 1, 1, 1])
    blockwise_loss(hidden, Head(weight, None, torch.float32), targets, [2, 1, 1, 1], loss, group=2)
    assert told == ([(0, 4)] if block_rows == 1000 else [(0, 2), (2, 4)])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(lambda half: half + half[::-1]), st.integers(1, 20))
def test_any_sizes_in_blocks_of_any_size(sizes, rows):
    before = losses.fused.BLOCK_BYTES
    losses.fused.BLOCK_BYTES = 4 * VOCABULARY * rows
    try:
        check(sizes, bias=True)
    finally:
        losses.fused.BLOCK_BYTES = before


def test_a_frozen_weight_gets_no_gradient_and_the_hidden_states_the_same(block_rows):
    sizes = [2, 3]
    hidden, weight, _, targets = made(sizes)
    frozen = weight.detach()
    blockwise_loss(hidden, Head(frozen, None, torch.float32), targets, sizes, by_pair, group=2)[0].backward()
    *_, exact, _, _ = plain(hidden, weight, None, targets, sizes, by_pair)
    torch.testing.assert_close(hidden.grad.double(), exact, rtol=1e-5, atol=1e-6)
    assert frozen.grad is None


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_onednn_makes_the_same_products(block_rows):
    sizes = [2, 1, 4, 7]
    hidden, weight, _, targets = made(sizes)
    head = Head(weight, None, torch.float32, onednn_product)
    blockwise_loss(hidden, head, targets, sizes, by_pair, group=2)[0].backward()
    _, _, of_hidden, of_weight, _ = plain(hidden, weight, None, targets, sizes, by_pair)
    torch.testing.assert_close(hidden.grad.double(), of_hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.grad.double(), of_weight, rtol=1e-5, atol=1e-5)


class LivingNumbers(TorchDispatchMode):
    """A count of the most numbers that the tensors made inside hold at once; small tensors are not counted."""

    def __init__(self, small: int) -> None:
        super().__init__()
        self.small, self.now, self.most = small, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.numel() > self.small:
            given = {argument.data_ptr() for argument in args if isinstance(argument, torch.Tensor)}
            if found.data_ptr() not in given:  # neither a view nor done in place
                self.now += found.numel()
                self.most = max(self.most, self.now)
                weakref.finalize(found, self._gone, found.numel())
        return found

    def _gone(self, numbers: int) -> None:
        self.now -= numbers


@pytest.mark.parametrize("group", [2, 6], ids=["by pair", "all together"])
def test_no_more_logits_than_a_block_holds_exist_at_once(monkeypatch, group):
    sizes, rows, vocabulary = [40, 30] * 3, 8, 500
    monkeypatch.setattr(losses.fused, "BLOCK_BYTES", 4 * vocabulary * rows)
    hidden = torch.randn(sum(sizes), 2, requires_grad=True)
    weight = torch.randn(vocabulary, 2, requires_grad=True)
    targets = torch.randint(vocabulary, (sum(sizes),))
    # 2 x 500 numbers are a gradient of the weight; a block has 8 x 500, all logits 210 x 500
    with LivingNumbers(small=2 * vocabulary) as living:
        blockwise_loss(hidden, Head(weight, None, torch.float32), targets, sizes, by_pair, group=group)[0].backward()
    assert living.most == rows * vocabulary


def test_bfloat16_products_keep_float32_sums(device):
    sizes = [300, 200]
    hidden, weight, _, targets = made(sizes, device=device)
    total, logps = blockwise_loss(hidden, Head(weight, None, torch.bfloat16), targets, sizes, by_pair, group=2)
    total.backward()
    _, exact, _, of_weight, _ = plain(hidden, weight, None, targets, sizes, by_pair)
    assert logps.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    torch.testing.assert_close(logps.double(), exact, rtol=0.01, atol=0.1)
    assert (weight.grad - of_weight).norm() < 0.02 * of_weight.norm()


def test_a_gpu_takes_larger_blocks_because_each_costs_it_the_same():
    blocks = [Head(torch.empty(50257, 8, device=device), None, torch.float32).block_rows for device in ("cpu", "meta")]
    assert blocks == [333, 2670]  # 64 MiB and 512 MiB of 4 x 50257 bytes
