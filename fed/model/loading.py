"""The policy of a run: model and tokenizer as the settings name them, placed and ready to compute."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from fed.config.groups import LoraSettings, ModelSettings
from fed.data.collate import PADDED, Layout
from fed.distributed.ranks import ALONE
from fed.distributed.shards import local
from fed.model.arrays import not_finite
from fed.model.lora import named_base
from fed.model.placement import Placement, move
from fed.model.policy import Policy
from fed.model.precision import compute_dtype, weights_dtype
from fed.model.pretrained import load_tokenizer
from fed.model.probe import check_causal, check_positions, head_can_be_split, specimen, start_packing
from fed.model.quantization import packed_layers
from fed.model.randomness import switch_off
from fed.model.scorer import is_scorer
from fed.model.sharded import sharded_model
from fed.model.whole import Source, whole_model


def load_policy(
    settings: ModelSettings,
    place: Placement,
    *,
    lora: LoraSettings | str | None = None,
    layout: Layout = PADDED,
    max_length: int = 512,
    activation_checkpointing: bool = False,
    scores: bool = False,
) -> Policy:
    """Load the model and the tokenizer that `settings` name, with dropout off and an adapter if lora.r > 0.

    Args:
        settings: Names the files and the dtypes.
        place: Where the weights lie.
        lora: The adapter that is to be trained, or the directory or hub name of a trained one that is added for
            reading; None: no adapter.
        layout: How batches are laid out. The policy does without those parts that the model cannot do, and its
            `remarks` say why.
        max_length: Tokens of the longest sequence.
        activation_checkpointing: Compute activations again in the backward pass to save memory.
        scores: Load a reward model, or give the model a value head.

    Raises:
        ValueError: If something cannot be loaded or does not fit together.
    """
    source, own = replace(_source(settings), scores=scores), place.mesh.own
    source = replace(source, trained=lora) if isinstance(lora, str) else replace(source, lora=lora)
    is_whole = place.mesh.device_mesh is None
    model, root = (whole_model(source), None) if is_whole else sharded_model(source, place)
    _check_finite(model, settings, place)
    _set_checkpointing(model, activation_checkpointing)
    check_positions(model.config, max_length)
    attention = model.config._attn_implementation
    possible = _possible(layout, model, model if is_whole else specimen(model), max_length)
    device = move(model, place.device) if is_whole else place.device
    policy = Policy(model, source.tokenizer, device, source.compute_dtype, *possible, attention)
    return replace(policy, ranks=own if root is not None else ALONE, holders=own, root=root)


def _check_finite(model: Any, settings: ModelSettings, place: Placement) -> None:
    """Check the weights, each process those that it holds.

    Raises:
        ValueError: If one is infinite or not a number.
    """
    own = {name: local(parameter.detach()) for name, parameter in model.named_parameters()}
    own.update((name, layer.scales) for name, layer in packed_layers(model))
    if (odd := place.mesh.world.any_of(not_finite(own))) is not None:
        where = settings.archive or settings.gguf_file or settings.name_or_path
        raise ValueError(f"{where} has numbers that are not finite, in {odd} for one; give other weights")


def _source(settings: ModelSettings) -> Source:
    """Check the settings and load the tokenizer.

    Raises:
        ValueError: If a setting cannot work, or the tokenizer cannot be loaded.
    """
    dtype, compute = weights_dtype(settings), compute_dtype(settings)
    if not settings.name_or_path and not settings.gguf_file:
        raise ValueError("no model is given; set model.name_or_path (a directory or a hub name) or model.gguf_file")
    if settings.archive == "":
        raise ValueError("model.archive is empty; give a file or a directory, or leave it out")
    base: str | None = None
    for folder in (settings.name_or_path, settings.archive):
        # Transformers would load base and adapter, but under other names and all frozen.
        if folder is not None and (Path(folder).expanduser() / "adapter_config.json").is_file():
            with suppress(ValueError):
                base = named_base(folder)
            base = base or "<the model it was trained on>"
            raise ValueError(
                f"{folder} holds an adapter, not a whole model; give model.name_or_path={base} model.adapter={folder}"
            )
    return Source(settings, load_tokenizer(settings), dtype, compute)


def _set_checkpointing(model: Any, on: bool) -> None:
    if on:
        # The first name of newer transformers 5, where the second warns.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        try:
            enable({"use_reentrant": False})
        except ValueError as error:  # of families whose blocks cannot be computed again
            raise ValueError(f"{str(error).rstrip('. ')}; leave activation_checkpointing out") from error
    switch_off(model)


def _possible(layout: Layout, model: Any, trial: Any, max_length: int) -> tuple[bool, Layout, tuple[str, ...]]:
    """Try on `trial` what the model can do.

    Returns:
        Whether the head can run alone, as much of the layout as the model can do, and remarks on the rest.

    Raises:
        ValueError: If the model sees the tokens that it should predict.
    """
    check_causal(trial)
    scores, remarks = is_scorer(model), []
    split_head = scores or head_can_be_split(trial)
    if layout.packing and (problem := start_packing(trial, max_length)):
        layout = replace(layout, packing=False)
        remarks.append(f"{type(model).__name__} runs padded, not packed: {problem}")
    elif layout.packing:
        model.set_attn_implementation(trial.config._attn_implementation)
    head = type(model.get_output_embeddings())
    if scores:
        layout = replace(layout, fused_head=False)
    if layout.fused_head and not (split_head and head is nn.Linear):
        layout = replace(layout, fused_head=False)
        reason = f"is a {head.__name__}" if split_head else "does not make its logits alone"
        remarks.append(f"the head of {type(model).__name__} {reason}: it is not fused")
    return split_head, layout, tuple(remarks)
