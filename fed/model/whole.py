"""A model with all its weights in the memory of one process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fed.config.groups import LoraSettings, ModelSettings
from fed.model.adapter_config import adaptable_layers
from fed.model.archive import load_archive
from fed.model.lora import add_adapter, merge_adapter, open_adapter
from fed.model.pretrained import load_model
from fed.model.quantization import quantize
from fed.model.scorer import as_scorer, is_scorer


@dataclass(frozen=True)
class Source:
    """The settings and objects that a model is made from."""

    settings: ModelSettings
    tokenizer: Any
    dtype: torch.dtype  # of the weights
    compute_dtype: torch.dtype | None  # None: that of the weights
    lora: LoraSettings | None = None  # the adapter that is to be trained
    scores: bool = False  # the model gets a value head, or has one
    trained: str | None = None  # a trained adapter that is added for reading, by directory or hub name


def whole_model(source: Source) -> Any:
    """Load the model with all its weights into main memory, with what the settings change of it.

    Raises:
        ValueError: If something cannot be loaded or does not fit.
    """
    model = load_model(source.settings, source.tokenizer, source.dtype, scores=source.scores)
    if source.settings.archive is not None:
        load_archive(model, Path(source.settings.archive).expanduser())
    if source.settings.adapter is not None:
        model = merge_adapter(model, source.settings.adapter)
    if source.scores and not is_scorer(model):
        model = as_scorer(model)
    if source.settings.quantization is not None:
        quantize(model, list(adaptable_layers(model)), source.settings.quantization)
    prepare(model, source)
    return model


def prepare(model: Any, source: Source) -> None:
    """Check `model.block_name` and add the adapter, if the settings have them.

    Raises:
        ValueError: If the model has no such block, or no such layer for the adapter.
    """
    if source.settings.block_name is not None:
        _check_block_name(model, source.settings.block_name)
    if source.trained is not None:
        open_adapter(model, source.trained)
    elif source.lora is not None and source.lora.r:
        add_adapter(model, source.lora, _home(source.settings))


def _check_block_name(model: Any, block_name: str) -> None:
    classes = {type(module).__name__ for module in model.modules()}
    if block_name not in classes:
        repeated = sorted(name for name in classes if "Block" in name or "Layer" in name)
        raise ValueError(f"model.block_name={block_name} is not a module of the model; it has {', '.join(repeated)}")


def _home(settings: ModelSettings) -> str | None:
    """Return the directory or hub name that alone gives the loaded weights; None: there is none."""
    name = settings.name_or_path
    others = (settings.gguf_file, settings.archive, settings.adapter)
    if name is None or name == "demo" or any(other is not None for other in others):
        return None
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name
