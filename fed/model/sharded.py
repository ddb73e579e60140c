"""A model whose weights are split over processes, by FSDP or within its layers."""

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoModelForCausalLM

from fed.distributed.fill import Read, fill, from_files, from_first
from fed.distributed.fsdp import Root, run, shard
from fed.distributed.ranks import Mesh
from fed.distributed.tensor_parallel import difference, problem, split, sum_shared_gradients
from fed.model.demo import demo_config
from fed.model.placement import Placement
from fed.model.pretrained import check_tokens, is_demo, load_config, load_generation_config
from fed.model.probe import ROUNDING, specimen
from fed.model.randomness import put_back, without_randomness
from fed.model.whole import Source, prepare, whole_model


def sharded_model(source: Source, place: Placement) -> tuple[Any, Root | None]:
    """Load a model over the ranks of the device mesh; all of them call it.

    Each rank reads its part from the files if they allow it. Otherwise the first rank reads the whole model and hands
    out its weights one by one.

    Returns:
        The model, and with FSDP the root that gathers its weights; None: layers are shared instead.

    Raises:
        ValueError: If the model cannot be loaded or split.
    """
    mesh = place.mesh
    assert mesh.device_mesh is not None
    model = _empty_model(source)
    read = _reader(source, model, mesh)
    if place.tensor_parallel:
        _share_layers(model, mesh)
        fill(model, place.device, read)
        sum_shared_gradients(model, mesh.device_mesh)
        return model, None
    block_name, offload = source.settings.block_name, place.cpu_offload
    root = shard(model, mesh, block_name=block_name, compute_dtype=source.compute_dtype, cpu_offload=offload)
    # FSDP brings offloaded weights to the GPU when they are used, but no buffers.
    fill(model, torch.device("cpu") if offload else place.device, read, buffers_on=place.device)
    with torch.no_grad():
        run(root, lambda: None)  # FSDP settles where the parts lie
    return model, root


def _empty_model(source: Source) -> Any:
    """Make the model without memory for its weights."""
    settings, tokenizer = source.settings, source.tokenizer
    config = demo_config(tokenizer) if is_demo(settings) else load_config(settings)
    random = without_randomness(config)
    with torch.random.fork_rng(devices=[]):  # draws count where the weights are made
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, dtype=source.dtype, trust_remote_code=settings.trust_remote_code
            )
        model.tie_weights()
        put_back(model.config, random)
        prepare(model, source)
    return model


def _reader(source: Source, model: Any, mesh: Mesh) -> Read:
    """Return the function that reads the model's weights; all ranks get theirs from the same place."""
    settings, read = source.settings, None
    changed = settings.gguf_file, settings.archive, settings.adapter
    if settings.name_or_path is not None and not any(changed):
        read = from_files(Path(settings.name_or_path).expanduser(), model)
    if all(mesh.world.gather(read is not None)):
        assert read is not None
        check_tokens(model, source.tokenizer, settings)
        if (found := load_generation_config(settings)) is not None:
            model.generation_config = found
        return read
    state: dict[str, Tensor] = {}

    def read_whole() -> None:
        whole = whole_model(source)
        if whole.config.tie_word_embeddings != model.config.tie_word_embeddings:
            raise ValueError(
                f"model.adapter={settings.adapter} has trained embeddings and head apart, which only "
                "trainer=BasicTrainer keeps apart; use it"
            )
        state.update(whole.state_dict())

    mesh.world.from_first_or_raise(read_whole)
    return from_first(mesh.world, state)


def _share_layers(model: Any, mesh: Mesh) -> None:
    """Split each layer over the processes of a group.

    Raises:
        ValueError: If the layers cannot be split, or then compute something else.
    """
    assert mesh.device_mesh is not None
    why = problem(model, mesh.own.count)
    if why is None and (change := difference(model, specimen, mesh.device_mesh)) > ROUNDING:
        why = f"shared layers of a small {type(model).__name__} differ from whole ones by {change:.1g}"
    if why is not None:
        raise ValueError(f"trainer=TensorParallelTrainer cannot share this model: {why}; use trainer=FSDPTrainer")
    split(model, mesh.device_mesh)
