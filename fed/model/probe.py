"""Trials of a loaded model on a few tokens, to find what it can do."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fed.data.collate import PADDED, Layout, Segments, collate
from fed.data.examples import Example
from fed.model.attention import NAME

# A few ragged pairs: a response of one token and one longer than the other, prompts of different lengths.
PAIRS = (
    ((5, 3, 9, 4), (7, 2, 6), (8, 1, 3, 5, 2)),
    ((2, 6), (4,), (9, 7, 1, 8)),
    ((1, 8, 3, 3, 7), (6, 5, 4, 2), (3,)),
)
ROUNDING = 1e-4  # what float32 may change in hidden states, relative to the largest
# The names that configurations give to the number of earlier tokens that a token sees.
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size")
# Kinds of rotary positions whose angles depend on the longest sequence of a batch beyond the first training's length.
BY_LONGEST = ("longrope", "dynamic")


def check_positions(config: Any, max_length: int) -> None:
    """Refuse lengths at which the log-probs of a pair would depend on the pairs beside it.

    Raises:
        ValueError: If `max_length` is beyond the positions that the model's rotary table was made for.
    """
    text = config.get_text_config()
    found = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    for rope in (found, *(value for value in found.values() if isinstance(value, dict))):
        kind = rope.get("rope_type", rope.get("type"))
        if kind not in BY_LONGEST:
            continue
        known = rope.get("original_max_position_embeddings") or text.max_position_embeddings
        if max_length > known:
            raise ValueError(
                f"max_length={max_length} is more than the {known} positions that the model was first trained on: "
                f"beyond them its {kind} positions depend on the longest pair of a batch, so log-probs would not "
                f"repeat; give max_length={known} or less"
            )


@torch.no_grad()
def check_causal(model: Any) -> None:
    """Refuse a model whose earlier hidden states change with later tokens: it sees what it should predict.

    Raises:
        ValueError: If they change.
    """
    known = model.get_input_embeddings().num_embeddings
    ids = torch.arange(1, 17, device=model.device)[None].expand(2, -1).clone()
    ids[1, 8:] += 16
    with _in_float32(model):
        hidden = model.base_model(input_ids=ids % known, use_cache=False)[0][:, :8]
    if _difference(hidden[0], hidden[1]) > ROUNDING:
        raise ValueError(
            f"{type(model).__name__} reads later tokens, as encoders do, so it has no log-prob of a response; give a "
            "causal language model (for some families with is_decoder=true in its config.json)"
        )


@torch.no_grad()
def start_packing(model: Any, max_length: int) -> str | None:
    """Switch the model to attention within the segments of packed rows, if it can do that.

    It can if its hidden states equal those of padded rows, up to rounding. They are compared in float32, because
    bfloat16 hides much. A model fails if a state runs along its rows, if its attention is its own, or if it takes no
    positions. A few tokens cannot show a window, so its length is read from the configuration.

    Returns:
        None if the model was switched; otherwise the reason why not, and the model stays as it was.
    """
    for name in WINDOWS:
        window = getattr(model.config, name, None)
        if window is not None and window < max_length:
            return f"its {name} of {window} tokens is shorter than max_length={max_length}"
    with _in_float32(model):
        return _start_packing(model, max_length)


def _start_packing(model: Any, max_length: int) -> str | None:
    known = model.get_input_embeddings().num_embeddings
    prompts, chosen, rejected = ([tuple(t % known for t in ids) for ids in side] for side in zip(*PAIRS, strict=True))
    pairs = list(map(Example, prompts, chosen, rejected))
    before = model.config._attn_implementation
    padded = _hidden(model, pairs, PADDED, max_length)
    try:
        model.set_attn_implementation(NAME)
        if model.config._attn_implementation != NAME:
            return "its attention is its own"
        differences = [_difference(padded, _hidden(model, pairs, layout, max_length)) for layout in _LAYOUTS]
        if max(differences) <= ROUNDING:
            return None
        problem = f"hidden states would differ by {max(differences):.1g}"
    except Exception as error:  # whatever a model raises that takes no positions or needs another attention
        problem = " ".join(str(error).split())[:200]
    model.set_attn_implementation(before)
    return problem


@contextmanager
def _in_float32(model: Any) -> Iterator[None]:
    """Convert every weight to float32 inside the context and back at its end, without loss."""
    tensors = [t for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()]
    dtypes = [t.dtype for t in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in zip(tensors, dtypes, strict=True):
            tensor.data = tensor.data.to(dtype)


_LAYOUTS = (Layout(prefix_sharing=False), Layout(prefix_sharing=True))


def _hidden(model: Any, pairs: list[Example], layout: Layout, max_length: int) -> Tensor:
    batch = collate(pairs, device=model.device, layout=layout)
    inputs = {"input_ids": batch.input_ids, "use_cache": False}
    if batch.segments is not None:
        segments = Segments(batch.segments.lengths, batch.segments.device, longest=max_length)
        inputs.update(position_ids=batch.position_ids, segments=segments)
    found: Tensor = model.base_model(**inputs)[0]
    return found.flatten(0, 1).index_select(0, batch.rows)


def _difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((a - b).abs().max() / a.abs().max())


def specimen(model: Any) -> Any:
    """Make a small random model of the same kind, float32 on the CPU, for trials that a sharded model cannot do.

    It has two layers and 64 tokens: the number of either does not change what a model can do.
    """
    config = copy.deepcopy(model.config)
    text = config.get_text_config()
    layers = min(text.num_hidden_layers, 2)
    changes = {"vocab_size": 64, "num_hidden_layers": layers, "pad_token_id": None, "initializer_range": 0.2}
    for key, value in changes.items():
        if getattr(text, key, None) is not None:
            setattr(text, key, value)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        return type(model)._from_config(config, dtype=torch.float32).eval()


@torch.no_grad()
def head_can_be_split(model: Any) -> bool:
    """Return whether the logits are head(hidden states) and nothing else; some models scale or cap one of the two.

    The trial has the head return values from -100 to 100: a random model's own logits are too small to show a cap.
    """
    head, body = model.get_output_embeddings(), model.base_model
    if head is None or body is model:
        return False
    seen: dict[str, Tensor] = {}

    def keep_hidden(module: nn.Module, inputs: Any, output: Any) -> None:
        seen["hidden"] = output.last_hidden_state

    def widen(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        wide = torch.linspace(-100, 100, output.numel(), dtype=output.dtype, device=output.device).view_as(output)
        seen.update(head_input=inputs[0], wide=wide)
        return wide

    hooks = [body.register_forward_hook(keep_hidden), head.register_forward_hook(widen)]
    try:
        ids = torch.arange(8, device=model.device)[None] % model.get_input_embeddings().num_embeddings
        logits = model(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
    return (
        seen.keys() == {"hidden", "head_input", "wide"}
        and torch.equal(seen["head_input"], seen["hidden"])
        and torch.equal(seen["wide"].to(logits), logits)
    )
