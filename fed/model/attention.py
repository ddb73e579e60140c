"""Attention over a packed row: each segment by itself, and the second response of a pair does not see the first.

It is registered with transformers under `NAME`. Transformers has no mask function of that name, so it builds no mask.
The keyword argument `segments` of `model(...)` reaches the functions here.

Shapes: T tokens of the packed row, H query heads, K key/value heads, E head size.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from fed.data.collate import Segment, Segments

NAME = "packed"
BLOCK = 128  # tokens that FlexAttention takes or skips together


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments | None = None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Attend in one layer of the model, as transformers calls it.

    Args:
        module: The layer.
        query: (N, H, T, E).
        key: (N, K, T, E).
        value: (N, K, T, E).
        attention_mask: None; transformers builds none for this function.
        segments: The segments of the packed row; then N is 1. None: N rows, each causal.
        scaling: The factor of the scores; None: 1 / sqrt(E).
        **more: Other arguments of the model. `dropout` must be 0, and `sliding_window`, the number of keys that a
            query sees, must not be less than the longest sequence. The rest must not change the scores.

    Returns:
        (N, T, H, E), and None for the attention weights.

    Raises:
        NotImplementedError: If the model needs something that this function does not do.
    """
    _check({**more, "mask": attention_mask}, query.shape[2] if segments is None else segments.longest)
    if segments is not None:
        return _within(segments, query, key, value, scaling).transpose(1, 2), None
    grouped = query.shape[1] != key.shape[1]
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    return mixed.transpose(1, 2), None


def _check(asked: dict[str, Any], longest: int) -> None:
    """Check that the model needs no more than this module does, and no window shorter than the longest sequence."""
    changes = [name for name in ("softcap", "s_aux", "position_bias", "cache") if asked.get(name) is not None]
    if asked["mask"] is not None or asked.get("dropout") or changes:
        raise NotImplementedError(f"packed attention has no {', '.join(changes) or 'mask and no dropout'}")
    window = asked.get("sliding_window")
    if window is not None and window < longest:
        raise NotImplementedError(f"a sliding window of {window} tokens is shorter than {longest}")


def _within(segments: Segments, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Attend within the segments in the way that is fastest on this device; return (1, H, T, E)."""
    if segments.device != query.device:  # a layer on another GPU
        segments = replace(segments, device=query.device)
    if query.is_cuda and flex_is_usable(query.device, value.dtype, query.shape[1], key.shape[1], query.shape[3]):
        return flex(query, key, value, segments, scaling, compiled_flex())
    if value.is_cpu and value.dtype.itemsize == 2:
        return widened(query, key, value, segments, scaling)
    return segmentwise(query, key, value, segments, scaling)


def segmentwise(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    """Call torch's fused attention once or twice for each segment; return (1, H, T, E).

    On a CPU this is faster than one call with a T x T mask. Tensors are split and joined, never sliced: the gradient of
    a slice is a tensor of the whole row, mostly zeros.
    """
    attend = functools.partial(F.scaled_dot_product_attention, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    sizes = [n for s in segments.lengths for n in (s.prefix + s.first, s.second) if n]
    queries = iter(torch.split(query, sizes, dim=2))
    keys, values = (iter(torch.split(x, [n for s in segments.lengths for n in s if n], dim=2)) for x in (key, value))
    mixed = []
    for lengths, mask in zip(segments.lengths, segments.masks, strict=True):
        own_keys, own_values = (_stretches(lengths, stretches) for stretches in (keys, values))
        mixed.append(attend(next(queries), own_keys[0], own_values[0], is_causal=True))
        if mask is not None:
            mixed.append(attend(next(queries), own_keys[1], own_values[1], attn_mask=mask))
    return torch.cat(mixed, dim=2)


def widened(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scaling: float | None) -> Tensor:
    """Compute `segmentwise` of 16-bit numbers in float32: torch's fused attention on a CPU is then 1.4 times faster.

    Tensors saved for the backward pass are still kept in 16 bits. Inputs are rounded first, so that both passes see the
    same numbers. Log-sum-exps must not be rounded; they are recognised by their last dimension, which is not E.
    """
    dtype, size = value.dtype, value.shape[-1]

    def pack(kept: Tensor) -> Tensor:
        return kept.to(dtype) if kept.dtype == torch.float32 and kept.ndim == 4 and kept.shape[-1] == size else kept

    def unpack(kept: Tensor) -> Tensor:
        return kept.float() if kept.dtype == dtype else kept

    with torch.autocast("cpu", enabled=False), saved_tensors_hooks(pack, unpack):
        query, key, value = (x.to(dtype).float() for x in (query, key, value))
        return segmentwise(query, key, value, segments, scaling).to(dtype)


def _stretches(lengths: Segment, stretches: Any) -> tuple[Tensor, Tensor]:
    """Return the keys or values that prefix and `first` see, and those that `second` sees."""
    prefix, first, second = (next(stretches) if n else None for n in lengths)
    assert prefix is not None
    return tuple(prefix if own is None else torch.cat((prefix, own), 2) for own in (first, second))  # type: ignore[return-value]


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Segments,
    scaling: float | None,
    kernel: Callable[..., Tensor] = flex_attention,
) -> Tensor:
    """Compute the same as `segmentwise` by FlexAttention: one kernel for the row, which skips blocks nobody sees."""
    query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast, rotary embedding leaves them in float32
    return kernel(
        query, key, value, block_mask=block_mask(segments), scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )


@functools.lru_cache(maxsize=4)  # the same for all layers of a forward pass, and again in its backward pass
def block_mask(segments: Segments) -> BlockMask:
    """Find the blocks of tokens that may see each other, from the lengths: a T x T mask never exists."""
    lengths = torch.tensor(segments.lengths, device=segments.device)
    total = sum(map(sum, segments.lengths))
    # 3 a segment: prefix, first, second. Without the size a GPU would have to be asked for it.
    stretch = torch.repeat_interleave(lengths.flatten(), output_size=total)
    segment, part = stretch // 3, stretch % 3

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (segment[q] == segment[k]) & (q >= k) & ~((part[q] == 2) & (part[k] == 1))

    first = torch.arange(0, total, BLOCK, device=segments.device)
    last = (first + BLOCK - 1).clamp(max=total - 1)
    near = (first[:, None] >= first) & (segment[first][:, None] <= segment[last])  # (query block, key block)
    order = near.int().argsort(dim=1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        near.sum(1).int()[None, None], order[None, None], BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(total, total)
    )


@functools.cache
def compiled_flex() -> Callable[..., Tensor]:
    """Return FlexAttention, compiled at its first call."""
    return torch.compile(flex_attention, dynamic=True)


@functools.cache
@torch.enable_grad()  # the first call may come within no_grad
def flex_is_usable(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> bool:
    """Return whether FlexAttention compiles for such heads there and agrees with `segmentwise`, gradients too.

    Otherwise a warning says why packed rows take the slower way.
    """
    segments = Segments((Segment(70, 20, 30), Segment(5, 1, 130)), device, longest=135)
    generator = torch.Generator(device).manual_seed(0)
    query, key, value = (
        torch.randn(1, n, 256, size, device=device, dtype=dtype, generator=generator).requires_grad_()
        for n in (heads, key_heads, key_heads)
    )
    found = []
    try:
        with torch.autocast(device.type, enabled=False):
            for attend in (segmentwise, functools.partial(flex, kernel=compiled_flex())):
                mixed = attend(query, key, value, segments, size**-0.5)
                found.append([mixed.detach(), *torch.autograd.grad(mixed.float().square().sum(), (query, key, value))])
    except Exception as error:  # whatever a missing or foreign compiler raises
        problem = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    else:
        apart = max(float((a - b).float().abs().max()) for a, b in zip(*found, strict=True))
        if all(torch.allclose(a, b, rtol=0.05, atol=0.05) for a, b in zip(*found, strict=True)):
            return True
        problem = f"it differs from plain attention by {apart:.1g}"
    shape = f"{heads} heads of {size} in {str(dtype).removeprefix('torch.')}"
    warnings.warn(f"packed attention runs segment by segment: no FlexAttention for {shape}: {problem}", stacklevel=2)
    return False


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
