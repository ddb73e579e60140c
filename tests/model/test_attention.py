"""Attention within the segments of a packed row, against one softmax with a T x T mask written by hand, in float64."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fed.data.collate import Segment, Segments
from fed.model import attention
from fed.model.attention import flex, flex_is_usable, packed_attention, segmentwise, widened

LENGTHS = ((3, 2, 4), (1, 0, 0), (5, 0, 1), (2, 3, 0), (1, 1, 1))


def segments(lengths=LENGTHS, device: str = "cpu") -> Segments:
    longest = max(a + max(b, c) for a, b, c in lengths)
    return Segments(tuple(Segment(*n) for n in lengths), torch.device(device), longest)


def sees(lengths) -> torch.Tensor:
    """Compute the mask, (T, T), token by token from the definition."""
    who = [(s, part) for s, stretches in enumerate(lengths) for part, n in enumerate(stretches) for _ in range(n)]
    return torch.tensor(
        [
            [a[0] == b[0] and q >= k and not (a[1] == 2 and b[1] == 1) for k, b in enumerate(who)]
            for q, a in enumerate(who)
        ]
    )


def inputs(lengths, heads=4, key_heads=2, size=8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    total = sum(map(sum, lengths))
    return [torch.randn(1, n, total, size, generator=generator).requires_grad_() for n in (heads, key_heads, key_heads)]


def by_hand(query, key, value, lengths, scaling):
    query, key, value = query.double(), key.double(), value.double()
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~sees(lengths), -math.inf)
    return scores.softmax(-1) @ value


def check(attend, lengths, **shape):
    found_inputs, exact_inputs = inputs(lengths, **shape), inputs(lengths, **shape)
    found = attend(*found_inputs, segments(lengths), 0.3)
    exact = by_hand(*exact_inputs, lengths, 0.3)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    weight = torch.linspace(-1, 1, found.numel()).view_as(found)
    (found * weight).sum().backward()
    (exact * weight).sum().backward()
    for a, b in zip(found_inputs, exact_inputs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_a_token_sees_its_segment_and_the_second_response_not_the_first(key_heads):
    check(segmentwise, LENGTHS, key_heads=key_heads)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("lengths", [LENGTHS, ((70, 20, 50), (5, 0, 130))], ids=["one block", "blocks"])
@torch.no_grad()
def test_flex_attention_gives_the_same(lengths):
    """Its gradient exists on a GPU only, where `flex_is_usable` compares it."""
    query, key, value = (x.detach() for x in inputs(lengths, size=16))
    exact = by_hand(query, key, value, lengths, 0.3)
    torch.testing.assert_close(flex(query, key, value, segments(lengths), 0.3).double(), exact, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_any_lengths(lengths):
    check(segmentwise, lengths)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_numbers_on_a_cpu_are_rounded_once_and_not_on_the_way(dtype):
    """It differs from float64 only by the rounding of inputs, of the result and of what backward reads."""
    rounded = [x.to(dtype) for x in inputs(LENGTHS)]
    exact_inputs = [x.detach().double().requires_grad_() for x in rounded]
    found_inputs = [x.detach().float().requires_grad_() for x in rounded]  # as rotary embedding leaves them
    value = found_inputs[2].to(dtype)
    mixed = packed_attention(nn.Identity(), *found_inputs[:2], value, None, segments=segments(), scaling=0.3)[0]
    assert mixed.dtype == dtype
    exact = by_hand(*exact_inputs, LENGTHS, 0.3).transpose(1, 2)
    torch.testing.assert_close(mixed.double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)
    weight = torch.linspace(-1, 1, mixed.numel(), dtype=dtype).view_as(mixed)
    (mixed.float() * weight.float()).sum().backward()
    (exact * weight.double()).sum().backward()
    for found, expected in zip(found_inputs, exact_inputs, strict=True):
        assert (found.grad - expected.grad).norm() <= 2 * torch.finfo(dtype).eps * expected.grad.norm()


def test_what_backward_reads_of_16_bit_numbers_is_kept_in_16_bits():
    query, key, value = (x.bfloat16() for x in inputs(LENGTHS))
    waiting, seen, kept = [widened(query, key, value, segments(), 0.3).grad_fn], set(), []
    while waiting:
        node = waiting.pop()
        seen.add(node)
        if "Attention" in node.name():
            kept += [getattr(node, f"_raw_saved_{name}").data.dtype for name in ("query", "key", "value", "output")]
            assert node._raw_saved_logsumexp.data.dtype == torch.float32
        waiting += [one for one, _ in node.next_functions if one is not None and one not in seen]
    assert kept and set(kept) == {torch.bfloat16}


def test_without_segments_rows_are_causal():
    query, key, value = inputs(((6, 0, 0),))
    plain = packed_attention(nn.Identity(), query, key, value, None)[0]
    alone = packed_attention(nn.Identity(), query, key, value, None, segments=segments(((6, 0, 0),)))[0]
    torch.testing.assert_close(plain, alone)
    assert plain.shape == (1, 6, 4, 8)


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"softcap": 30.0}, "softcap"),
        ({"s_aux": torch.zeros(4)}, "s_aux"),
        ({"sliding_window": 6}, "sliding window of 6 tokens is shorter than 7"),
        ({"dropout": 0.1}, "no dropout"),
    ],
)
def test_what_would_change_the_scores_is_refused(asked, named):
    with pytest.raises(NotImplementedError, match=named):
        packed_attention(nn.Identity(), *inputs(LENGTHS), None, segments=segments(), **asked)


def test_a_window_that_reaches_over_the_longest_sequence_changes_nothing():
    asked = packed_attention(nn.Identity(), *inputs(LENGTHS), None, segments=segments(), sliding_window=7)[0]
    assert torch.equal(asked, packed_attention(nn.Identity(), *inputs(LENGTHS), None, segments=segments())[0])


def test_the_blocks_that_flex_attention_looks_at_hold_all_that_anyone_sees():
    lengths = ((70, 20, 50), (5, 0, 130), (300, 1, 1), (2, 0, 0), (90, 40, 40))
    mask = attention.block_mask(segments(lengths))
    blocks = mask.to_dense()[0, 0].bool()
    seen = sees(lengths)
    total, side = len(seen), attention.BLOCK
    needed = torch.zeros_like(blocks)
    for q, k in seen.nonzero().tolist():
        needed[q // side, k // side] = True
    assert mask.shape[-2:] == (total, total)
    assert (blocks | ~needed).all()
    assert blocks.sum() < blocks.numel() / 2, "most blocks are skipped"
    at = torch.arange(total)
    assert torch.equal(mask.mask_mod(0, 0, at[:, None], at), seen)


def dense(query, key, value, *, block_mask, scale, enable_gqa):
    """Compute what a compiled FlexAttention computes."""
    at = torch.arange(query.shape[2])
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    scores = (query @ key.transpose(2, 3) * scale).masked_fill(~block_mask.mask_mod(0, 0, at[:, None], at), -math.inf)
    return scores.softmax(-1) @ value


def causal_only(query, key, value, *, block_mask, scale, enable_gqa):
    return nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scale, enable_gqa=enable_gqa
    )


@pytest.mark.parametrize(
    ("kernel", "why"),
    [(dense, None), (causal_only, "it differs from plain attention by "), (None, "TypeError: 'NoneType' object")],
)
def test_flex_attention_is_used_if_it_agrees_also_when_first_asked_without_gradients(monkeypatch, kernel, why):
    monkeypatch.setattr(attention, "compiled_flex", lambda: kernel)
    flex_is_usable.cache_clear()
    told = nullcontext() if why is None else pytest.warns(UserWarning, match=f"no FlexAttention for 4 heads .*{why}")
    with torch.no_grad(), told:
        assert flex_is_usable(torch.device("cpu"), torch.float32, 4, 2, 16) is (why is None)
    flex_is_usable.cache_clear()


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 5e-3), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("lengths", [((70, 20, 50), (5, 0, 130)), ((300, 90, 120), (2, 1, 1), (64, 0, 0))])
def test_compiled_flex_attention_and_its_gradients_are_those_of_one_softmax_in_float64(dtype, near, lengths):
    """The kernels may round float32 to the 10 bits of TF32."""
    exact_inputs = inputs(lengths, heads=9, key_heads=3, size=64)
    own = [x.detach().to("cuda", dtype).requires_grad_() for x in exact_inputs]
    exact = by_hand(*exact_inputs, lengths, 0.125)
    found = flex(*own, segments(lengths, "cuda"), 0.125, attention.compiled_flex())
    weight = torch.linspace(-1, 1, found.numel()).view(found.shape)
    (found * weight.to(found)).sum().backward()
    (exact * weight).sum().backward()
    assert found.dtype == dtype
    pairs = [(found, exact), *((a.grad, b.grad) for a, b in zip(own, exact_inputs, strict=True))]
    assert all((a.cpu().double() - b).norm() <= near * b.norm() for a, b in pairs)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_flex_attention_is_used_on_the_gpu(dtype):
    assert flex_is_usable(torch.device("cuda"), dtype, 9, 3, 64)
