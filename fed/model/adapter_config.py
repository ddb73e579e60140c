"""The configuration of a LoRA adapter: the layers of a model that get one, and what is trained beside it."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from fed.config.groups import LoraSettings
from fed.cpu.onednn import is_linear
from fed.model.quantization import PackedLinear
from fed.model.scorer import is_scorer

# Their kernels read the weight of this layer beside an adapter of it; peft refuses it too.
READ_BY_KERNELS = dict.fromkeys(("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), "out_proj")


def adapter_config(model: Any, settings: LoraSettings) -> Any:
    """Return the adapter's configuration, as peft has it.

    Raises:
        ValueError: If a target module is not a linear layer, r exceeds the widest layer, or a name in `modules_to_save`
            matches no unpacked module with weights, or leaves no layer for the adapter.
    """
    from peft import LoraConfig  # takes seconds, which a client without an adapter saves

    linear = adaptable_layers(model)
    widest = max((size for layer in linear.values() for size in _sizes(layer)), default=settings.r)
    if settings.r > widest:
        raise ValueError(f"lora.r={settings.r} is above {widest}, the width of the model's widest layer; lower it")
    beside = [*settings.modules_to_save, *(["score"] if is_scorer(model) else [])]
    return LoraConfig(
        task_type="SEQ_CLS" if is_scorer(model) else "CAUSAL_LM",
        r=settings.r,
        lora_alpha=2 * settings.r if settings.alpha is None else settings.alpha,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        init_lora_weights="gaussian" if settings.init_lora_weights == "gaussian" else True,
        lora_dropout=settings.dropout,
        bias=settings.bias,
        modules_to_save=_modules(model, beside, left=linear),
        target_modules=_targets(model, linear, settings.target_modules),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),  # GPT-2 stores W transposed
    )


def adaptable_layers(model: Any) -> dict[str, nn.Linear | Conv1D]:
    """Return the layers that can have an adapter, by their dotted names: all linear ones but head and routers."""
    head = model.score if is_scorer(model) else model.get_output_embeddings()
    unseen = READ_BY_KERNELS.get(model.config.model_type)
    return {
        name: module
        for name, module in model.named_modules()
        if _takes_adapter(module) and module is not head and name.rpartition(".")[2] != unseen
    }


def _takes_adapter(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Return True if the layer returns what a linear one does; some routers are linear and return several tensors."""
    if is_linear(module) or isinstance(module, PackedLinear):
        return True
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    with torch.device("meta"):  # a trial without memory
        weights = {name: torch.empty(p.shape, dtype=p.dtype) for name, p in module.named_parameters()}
        inputs = torch.empty(1, 1, weights["weight"].shape[-1], dtype=weights["weight"].dtype)
    try:
        output = functional_call(module, weights, (inputs,))
    except Exception:  # whatever a layer raises that wants more than its input
        return False
    return isinstance(output, Tensor) and output.shape == (1, 1, weights["weight"].shape[0])


def _sizes(layer: nn.Linear | Conv1D) -> tuple[int, ...]:
    is_packed = isinstance(layer, PackedLinear)
    return (layer.out_features, layer.in_features) if is_packed else tuple(layer.weight.shape)


def _modules(model: nn.Module, wanted: list[str], left: Iterable[str]) -> list[str] | None:
    """Return the modules to train whole; None: none.

    Args:
        model: The model.
        wanted: The names of the modules.
        left: The names of the layers that can have an adapter.

    Raises:
        ValueError: If one is not a module of the model with weights that are not packed, or no layer is left.
    """
    for name in wanted:
        found = [module for other, module in model.named_modules() if other and _names_any(name, [other])]
        if any(isinstance(module, PackedLinear) for part in found for module in part.modules()):
            raise ValueError(f"lora.modules_to_save={name} would train packed weights; leave model.quantization out")
        if not any(True for module in found for _ in module.parameters()):
            raise ValueError(f"lora.modules_to_save={name} names no module with weights; expected one such as lm_head")
        whole = [other for other, _ in model.named_modules() if other and _names_any(name, [other])]
        left = [layer for layer in left if not any(f"{layer}.".startswith(f"{other}.") for other in whole)]
    if wanted and not left:
        raise ValueError(
            f"lora.modules_to_save=[{','.join(wanted)}] leaves no layer for the adapter; name fewer modules, or train "
            "all weights with lora.r=0"
        )
    return wanted or None


def _targets(model: Any, linear: Mapping[str, nn.Module], wanted: list[str] | str | None) -> list[str]:
    """Return the names of the target modules: those wanted, else those that peft knows for this family, else all.

    Raises:
        ValueError: If a wanted name matches another module than those of `linear`, or none.
    """
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as CHOICES_OF_PEFT

    if isinstance(wanted, list):
        others = [name for name, _ in model.named_modules() if name not in linear]
        for name in wanted:
            if not _names_any(name, linear) or _names_any(name, others):
                expected = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
                raise ValueError(
                    f"lora.target_modules={name} names no linear layer of the model below its head that an adapter "
                    f"can change; expected some of {expected}, or leave it out"
                )
        return wanted
    family = model.config.model_type
    choice = CHOICES_OF_PEFT.get(family) if wanted is None else None
    known = [name for name in choice if name != READ_BY_KERNELS.get(family)] if isinstance(choice, list) else []
    return known if known and all(_names_any(name, linear) for name in known) else list(linear)


def _names_any(name: str, linear: Iterable[str]) -> bool:
    """Return whether peft would find a layer by this name: its whole dotted name, or the last parts of it."""
    return any(f".{layer}".endswith(f".{name}") for layer in linear)
