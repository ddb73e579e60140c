"""A LoRA adapter inside the one model. With the adapter off it is the reference; only the adapter travels.

arXiv 2106.09685, equation 3: W x becomes W x + (alpha / r) B A x. W is frozen, A is random, B starts at 0.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from fed.config.groups import LoraSettings
from fed.cpu.onednn import is_linear
from fed.distributed.shards import is_sharded, whole_state

NAME = "default"  # the name that peft and transformers give to an adapter
OF_ADAPTERS = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.")  # in the names of an adapter's weights
# Their kernels read the weight of this layer beside an adapter of it; peft refuses it too.
READ_BY_KERNELS = dict.fromkeys(("falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"), "out_proj")


def add_adapter(model: Any, settings: LoraSettings, base: str | None) -> None:
    """Freeze the model and add a trainable float32 adapter to it in place, drawn from torch's generator.

    Args:
        model: A transformers model; its class, body, head and configuration stay as they are.
        settings: The adapter, with r > 0.
        base: The absolute directory or hub name that holds exactly these weights; None: there is none.

    Raises:
        ValueError: If a target module is no linear layer of the model, or r larger than any of them.
    """
    from peft import LoraConfig  # takes seconds, which a client without an adapter saves

    linear = _linear_layers(model)
    widest = max((size for layer in linear.values() for size in layer.weight.shape), default=settings.r)
    if settings.r > widest:
        raise ValueError(f"lora.r={settings.r} is above {widest}, the width of the model's widest layer; lower it")
    alpha = 2 * settings.r if settings.alpha is None else settings.alpha
    adapter = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.r,
        lora_alpha=alpha,
        use_rslora=settings.use_rslora,
        use_dora=settings.use_dora,
        init_lora_weights="gaussian" if settings.init_lora_weights == "gaussian" else True,
        target_modules=_targets(model, linear, settings.target_modules),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),  # GPT-2 stores W transposed
    )
    model.add_adapter(adapter, NAME)
    adapter.base_model_name_or_path = base
    adapter.target_modules = sorted(adapter.target_modules)  # a set would be written in another order each time
    for parameter in model.parameters():
        if parameter.requires_grad:  # peft gave it the dtype of the frozen weights
            parameter.data = parameter.data.float()


def merge_adapter(model: Any, name: str) -> Any:
    """Return the model with an adapter's product added to its weights, in place.

    Args:
        model: The model that the adapter was trained on.
        name: The adapter's directory, or its name on the hub.

    Raises:
        ValueError: If it cannot be read, is no LoRA adapter, holds pickled weights or does not fit.
    """
    from peft import PeftConfig, PeftModel

    folder = Path(name).expanduser()
    try:
        if folder.is_dir() and not (folder / "adapter_model.safetensors").is_file():
            raise ValueError("it has no adapter_model.safetensors")
        place = str(folder) if folder.is_dir() else name
        config = PeftConfig.from_pretrained(place)
        if config.peft_type != "LORA":
            raise ValueError(f"its type is {config.peft_type}, expected LORA")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of peft's use of transformers
            found = PeftModel.from_pretrained(model, place, config=config)
            merged = found.merge_and_unload(safe_merge=True)
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"cannot merge model.adapter={name} ({reason}); give the folder of a LoRA adapter of this model, as peft "
            "and runs with lora.r write it"
        ) from error
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged


def has_adapter(model: nn.Module) -> bool:
    """Return whether the model has an adapter."""
    return hasattr(model, "peft_config")


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Compute without the adapter inside the context; a model without one is left alone."""
    if not has_adapter(model):
        yield
        return
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


def base_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state without the adapter, under the names of a model that never had one."""
    state = model.state_dict()
    if not has_adapter(model):
        return state
    own = {name: tensor for name, tensor in state.items() if not any(part in name for part in OF_ADAPTERS)}
    return {name.replace(".base_layer.", "."): tensor for name, tensor in own.items()}


def save_model(model: Any, directory: Path, *, write: bool = True) -> None:
    """Write the model, or its adapter if it has one, for `AutoModelForCausalLM.from_pretrained(directory)` to load.

    If the adapter's base has no directory yet, the first call writes it to `directory/base` and later calls refer to
    it. If the model is split over processes, all of them call this, and one that has `write` set puts it together in
    main memory.
    """
    if not has_adapter(model):
        if is_sharded(model):
            _save_plain(model, whole_state(model.state_dict(), keep=write), directory, write=write)
        elif write:
            model.save_pretrained(directory)
        return
    from peft import get_peft_model_state_dict

    adapter = model.peft_config[NAME]
    if adapter.base_model_name_or_path is None:
        base = (directory / "base").resolve()
        _save_plain(model, whole_state(base_state(model), keep=write), base, write=write)
        adapter.base_model_name_or_path = str(base)
    # Unless told not to, peft asks the hub whether the vocabulary has grown.
    state = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    state = whole_state(state, keep=write)
    if write:
        adapter.save_pretrained(directory)
        prefixed = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}
        save_file(prefixed, directory / "adapter_model.safetensors", {"format": "pt"})


def _linear_layers(model: Any) -> dict[str, nn.Linear | Conv1D]:
    """Return the layers that can have an adapter, by their dotted names: all linear ones but head and routers."""
    head, unseen = model.get_output_embeddings(), READ_BY_KERNELS.get(model.config.model_type)
    return {
        name: module
        for name, module in model.named_modules()
        if _takes_adapter(module) and module is not head and name.rpartition(".")[2] != unseen
    }


def _takes_adapter(module: nn.Module) -> TypeGuard[nn.Linear | Conv1D]:
    """Return True if the layer returns what a linear one does; some routers are linear and return several tensors."""
    if is_linear(module):
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


def _save_plain(model: Any, state: dict[str, Tensor], directory: Path, *, write: bool) -> None:
    """Write a model of this class with the weights `state`, without an adapter, as an HF directory."""
    if not write:
        return
    with torch.device("meta"):  # an empty shell around the weights: no copy in memory
        plain = type(model)(model.config)
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    plain.save_pretrained(directory)
