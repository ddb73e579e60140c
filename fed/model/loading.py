"""Model and tokenizer from a directory, the hub, a GGUF file or code, and the archive that seeds their weights."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import get_balanced_memory
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig

from fed.config.schema import LoraSettings, ModelSettings
from fed.data.collate import PADDED, Layout
from fed.distributed.fill import Read, fill, from_files, from_first
from fed.distributed.fsdp import run, shard
from fed.distributed.ranks import ALONE, ONE_PROCESS, Mesh
from fed.distributed.tensor_parallel import difference, problem, split, sum_shared_gradients
from fed.model.demo import demo_config
from fed.model.lora import add_adapter
from fed.model.policy import Policy
from fed.model.pretrained import (
    _check_no_adapter,
    _check_tokens,
    _compute_dtype,
    _config,
    _dtype,
    _is_demo,
    _load_archive,
    _load_model,
    _load_tokenizer,
)
from fed.model.probe import head_can_be_split, specimen, start_packing


def load_policy(
    settings: ModelSettings,
    *,
    device: torch.device,
    activation_checkpointing: bool = False,
    lora: LoraSettings | None = None,
    layout: Layout = PADDED,
    max_length: int = 512,
    mesh: Mesh = ONE_PROCESS,
    tensor_parallel: bool = False,
    cpu_offload: bool = False,
) -> Policy:
    """Model, tokenizer and archive as `settings` name them, dropout off, on `device`, with an adapter if lora.r > 0.

    Of `layout`, what this model cannot do is left out; the policy's remarks say so. `max_length` is that of the longest
    sequence. `device` "cuda" without a number stands for all GPUs: if there are several, layers are split over them.

    With a device mesh, weights are split over its ranks, all of them (FSDP) or, with `tensor_parallel`, those within
    layers. Each rank reads its part from the files where that can be, else the first one reads all of them and hands
    them out, one by one; `cpu_offload` keeps them in main memory.

    Raises:
        ValueError: If anything cannot be loaded or does not fit together, with the way out.
    """
    dtype, compute_dtype = _dtype("model.policy_dtype", settings.policy_dtype), _compute_dtype(settings)
    if settings.reference_dtype not in (None, settings.policy_dtype):
        raise ValueError(
            f"model.reference_dtype={settings.reference_dtype} differs from policy_dtype={settings.policy_dtype}: "
            "round 0 would measure rounding noise instead of ties; leave it null"
        )
    if not settings.name_or_path and not settings.gguf_file:
        raise ValueError("no model is given; set model.name_or_path (a directory or a hub name) or model.gguf_file")
    if settings.archive == "":
        raise ValueError("model.archive is empty; give a file or a directory, or leave it out")
    _check_no_adapter(settings.name_or_path, settings.archive)
    tokenizer = _load_tokenizer(settings)
    root = None
    if mesh.device_mesh is None:
        model = trial = _whole_model(settings, tokenizer, dtype, lora)
    else:
        trial = None
        model, read = _empty_model(settings, tokenizer, dtype, lora, mesh)
        if tensor_parallel:
            _share_layers(model, mesh)
            fill(model, device, read)
            sum_shared_gradients(model, mesh.device_mesh)
        else:
            block_name = settings.block_name
            root = shard(model, mesh, block_name=block_name, compute_dtype=compute_dtype, cpu_offload=cpu_offload)
            fill(model, torch.device("cpu") if cpu_offload else device, read)
            with torch.no_grad():
                run(root, lambda: None)  # FSDP settles where the parts lie
    if activation_checkpointing:
        # The first name of newer transformers 5, where the second warns.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    model.train(activation_checkpointing)  # checkpointing works in training mode only; dropout is 0 either way
    if trial is None:
        trial = specimen(model)
    split_head = head_can_be_split(trial)
    layout, remarks = _possible(layout, model, trial, split_head, max_length)
    if mesh.device_mesh is None:
        device = _placed(model, device)
    shares_pairs = mesh.own if root is not None else ALONE
    return Policy(model, tokenizer, device, compute_dtype, split_head, layout, remarks, shares_pairs, mesh.own, root)


def _placed(model: Any, device: torch.device) -> torch.device:
    """Move the model to the device, or its layers to all GPUs if there are several; where its head then is."""
    if device != torch.device("cuda") or torch.cuda.device_count() < 2:
        model.to(device)
        return model.device  # type: ignore[no-any-return]  # with its number
    whole = {"no_split_module_classes": model._no_split_modules}
    memory = get_balanced_memory(model, **whole)
    dispatch_model(model, infer_auto_device_map(model, max_memory=memory, **whole))
    head: torch.device = model.get_output_embeddings().weight.device
    return head


def _whole_model(settings: ModelSettings, tokenizer: Any, dtype: torch.dtype, lora: LoraSettings | None) -> Any:
    """The model with all its weights in this process's main memory."""
    model = _load_model(settings, tokenizer, dtype)
    if settings.archive is not None:
        _load_archive(model, Path(settings.archive).expanduser())
    _prepare(model, settings, lora)
    return model


def _prepare(model: Any, settings: ModelSettings, lora: LoraSettings | None) -> None:
    if settings.block_name is not None:
        _check_block_name(model, settings.block_name)
    if lora is not None and lora.r:
        add_adapter(model, lora, _home(settings))


def _share_layers(model: Any, mesh: Mesh) -> None:
    """Have the processes of a group share each layer.

    Raises:
        ValueError: If they cannot, or what they then compute is not the same.
    """
    assert mesh.device_mesh is not None
    why = problem(model, mesh.own.count)
    if why is None and (change := difference(model, specimen, mesh.device_mesh)) > 1e-4:
        why = f"shared layers of a small {type(model).__name__} differ from whole ones by {change:.1g}"
    if why is not None:
        raise ValueError(f"trainer=TensorParallelTrainer cannot share this model: {why}; use trainer=FSDPTrainer")
    split(model, mesh.device_mesh)


def _empty_model(
    settings: ModelSettings, tokenizer: Any, dtype: torch.dtype, lora: LoraSettings | None, mesh: Mesh
) -> tuple[Any, Read]:
    """The model without memory for weights, and what reads them."""
    config = demo_config(tokenizer) if _is_demo(settings) else _config(settings)
    with torch.random.fork_rng(devices=[]):  # draws count where the weights are made
        with init_empty_weights(include_buffers=False):
            model: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, trust_remote_code=settings.trust_remote_code
            )
        model.tie_weights()
        _prepare(model, settings, lora)
    read = None
    if settings.name_or_path is not None and settings.gguf_file is None and settings.archive is None:
        read = from_files(Path(settings.name_or_path).expanduser(), model)
    if not all(mesh.world.gather(read is not None)):
        state: dict[str, Tensor] = {}

        def read_all() -> None:
            state.update(_whole_model(settings, tokenizer, dtype, lora).state_dict())

        mesh.world.from_first_or_raise(read_all)
        read = from_first(mesh.world, state)
    else:
        _check_tokens(model, tokenizer, settings)
        if settings.gguf_file is None and getattr(model, "generation_config", None) is not None:
            with suppress(OSError):
                model.generation_config = GenerationConfig.from_pretrained(str(settings.name_or_path))
    assert read is not None
    return model, read


def _possible(
    layout: Layout, model: Any, trial: Any, split_head: bool, max_length: int
) -> tuple[Layout, tuple[str, ...]]:
    """As much of the layout as the model can do, tried on `trial`, and what it cannot."""
    remarks = []
    if layout.packing and (problem := start_packing(trial, max_length)):
        layout = replace(layout, packing=False)
        remarks.append(f"{type(model).__name__} runs padded, not packed: {problem}")
    elif layout.packing:
        model.set_attn_implementation(trial.config._attn_implementation)
    head = type(model.get_output_embeddings())
    if layout.fused_head and not (split_head and head is nn.Linear):
        layout = replace(layout, fused_head=False)
        reason = f"is a {head.__name__}" if split_head else "does not make its logits alone"
        remarks.append(f"the head of {type(model).__name__} {reason}: it is not fused")
    return layout, tuple(remarks)


def _home(settings: ModelSettings) -> str | None:
    """The directory or hub name that alone gives the weights just loaded; None: there is none."""
    name = settings.name_or_path
    if name is None or name == "demo" or settings.gguf_file is not None or settings.archive is not None:
        return None
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def _check_block_name(model: Any, block_name: str) -> None:
    classes = {type(module).__name__ for module in model.modules()}
    if block_name not in classes:
        repeated = sorted(name for name in classes if "Block" in name or "Layer" in name)
        raise ValueError(f"model.block_name={block_name} is no module of the model; it has {', '.join(repeated)}")
