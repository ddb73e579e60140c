"""A LoRA adapter inside the one model. With the adapter off it is the reference; only the adapter travels.

arXiv 2106.09685, equation 3: W x becomes W x + (alpha / r) B A x. W is frozen, A is random, B starts at 0. Biases and
whole modules that are trained beside it (`lora.bias`, `lora.modules_to_save`) are a part of the adapter here.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fed.config.groups import LoraSettings
from fed.distributed.shards import is_sharded, whole_state
from fed.model.adapter_config import adapter_config
from fed.model.quantization import packed_layers, unpacked_state

NAME = "default"  # the name that peft and transformers give to an adapter
# In the names of an adapter's weights.
OF_ADAPTERS = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.", f".modules_to_save.{NAME}.")
WRAPPED = ("modules_to_save", "original_module")
IN_NAMES = (".base_layer.", ".original_module.")  # what peft puts into the names of the model's own weights


def add_adapter(model: Any, settings: LoraSettings, base: str | None) -> None:
    """Freeze the model and add a trainable float32 adapter to it in place, drawn from torch's generator.

    Args:
        model: A transformers model; its class, body, head and configuration stay as they are.
        settings: The adapter, with r > 0.
        base: The absolute directory or hub name that holds exactly these weights; None: there is none.

    Raises:
        ValueError: For the reasons of `adapter_config`, or if biases are to be trained and the model has none.
    """
    adapter = adapter_config(model, settings)
    with _without_warnings():
        model.add_adapter(adapter, NAME)
    adapter.base_model_name_or_path = base
    if any(layer.transposed for _, layer in packed_layers(model)):
        adapter.fan_in_fan_out = True  # as the layers of its base, which are not packed
    adapter.target_modules = sorted(adapter.target_modules)  # a set would be written in another order each time
    for parameter in model.parameters():
        if parameter.requires_grad:  # it has the dtype of the frozen weights
            parameter.data = parameter.data.float()
    model.biases_before = {name: bias.detach().clone() for name, bias in _trained_biases(model).items()}
    if settings.bias != "none" and not model.biases_before:
        raise ValueError(f"lora.bias={settings.bias} finds no bias to train in {type(model).__name__}; leave it out")


def merge_adapter(model: Any, name: str) -> Any:
    """Return the model with an adapter's product added to its weights, in place.

    Args:
        model: The model that the adapter was trained on.
        name: The adapter's directory, or its name on the hub.

    Raises:
        ValueError: If it cannot be read, is no LoRA adapter, holds pickled weights or does not fit.
    """
    from peft import PeftConfig, PeftModel

    def merged(place: str, config: PeftConfig) -> Any:
        found = PeftModel.from_pretrained(model, place, config=config)
        return found.merge_and_unload(safe_merge=True)

    found = _read_adapter(name, merged)
    for parameter in found.parameters():
        parameter.requires_grad_(True)
    return found


def open_adapter(model: Any, name: str) -> None:
    """Add a trained adapter to the model in place, for reading only; with the adapter off, the model is as before.

    Args:
        model: The model that the adapter was trained on.
        name: The adapter's directory, or its name on the hub.

    Raises:
        ValueError: For the reasons of `merge_adapter`.
    """

    def opened(place: str, config: Any) -> None:
        report = model.load_adapter(place, NAME, peft_config=config)
        if odd := sorted({*report.missing_keys, *report.unexpected_keys}):
            raise ValueError(f"{len(odd)} weights are missing or unknown, first: {odd[0]}")

    before = {name: value.detach().clone() for name, value in model.named_parameters() if name.endswith("bias")}
    _read_adapter(name, opened)
    state = _without_adapter(model.state_dict())
    changed = {known for known, value in before.items() if not torch.equal(state[known], value)}
    model.biases_before = {}
    for known, parameter in model.named_parameters():
        (plain,) = _without_adapter({known: parameter}) or [known]
        parameter.requires_grad_(plain in changed)
        if plain in changed:
            model.biases_before[known] = before[plain]


def named_base(name: str) -> str | None:
    """Return the model that an adapter says it was trained on, by directory or hub name; None if it does not say.

    Raises:
        ValueError: If the adapter cannot be read.
    """
    base = _read_adapter(name, lambda place, config: config.base_model_name_or_path)
    return str(base) if base else None


def _read_adapter(name: str, read: Callable[[str, Any], Any]) -> Any:
    """Call `read` with an adapter's directory or hub name and its configuration, and return the result.

    Raises:
        ValueError: For the reasons of `merge_adapter`.
    """
    from peft import PeftConfig

    folder = Path(name).expanduser()
    try:
        if folder.is_dir() and not (folder / "adapter_model.safetensors").is_file():
            raise ValueError("it has no adapter_model.safetensors")
        place = str(folder) if folder.is_dir() else name
        config = PeftConfig.from_pretrained(place)
        if config.peft_type != "LORA":
            raise ValueError(f"its type is {config.peft_type}, expected LORA")
        with _without_warnings():
            return read(place, config)
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"cannot use the adapter {name} ({reason}); give the folder of a LoRA adapter of this model, as peft and "
            "runs with lora.r write it"
        ) from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence peft's warnings of its own use of transformers, and the one that `modules_to_save` unties weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings(
            "ignore", "Model has `tie_word_embeddings=True`|Input and output embeddings", UserWarning
        )
        yield


def has_adapter(model: nn.Module) -> bool:
    """Return whether the model has an adapter."""
    return hasattr(model, "peft_config")


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """Compute without the adapter inside the context; a model without one is left alone."""
    if not has_adapter(model):
        yield
        return
    biases = _trained_biases(model)
    trained = {name: bias.detach().clone() for name, bias in biases.items()}
    _enable(model, False)
    _set(biases, model.biases_before)
    try:
        yield
    finally:
        _enable(model, True)
        _set(biases, trained)


def base_state(model: Any) -> dict[str, Tensor]:
    """Return the model's state without the adapter, under the names of a model that never had one."""
    state: dict[str, Tensor] = model.state_dict()
    return _without_adapter({**state, **model.biases_before}) if has_adapter(model) else state


def _enable(model: nn.Module, on: bool) -> None:
    """Switch every part of the adapter; transformers' own function switches whole modules off, but not on again."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    for module in model.modules():
        if isinstance(module, BaseTunerLayer | ModulesToSaveWrapper):
            module.enable_adapters(on)


@torch.no_grad()
def _set(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


def _trained_biases(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of the model itself that are trained beside the adapter."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: parameter for name, parameter in trained.items() if not any(part in name for part in OF_ADAPTERS)}


def _without_adapter(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    own = {name: tensor for name, tensor in state.items() if not any(part in name for part in OF_ADAPTERS)}
    for part in IN_NAMES:
        own = {name.replace(part, "."): tensor for name, tensor in own.items()}
    return own


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
        state = _without_adapter({**unpacked_state(model, model.state_dict()), **model.biases_before})
        _save_plain(model, whole_state(state, keep=write), base, write=write)
        adapter.base_model_name_or_path = str(base)
    # Unless told not to, peft asks the hub whether the vocabulary has grown.
    state = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    # A bias of a whole module stands there under the names that it has in memory, too.
    state = {name: t for name, t in state.items() if not any(f".{part}." in f".{name}" for part in WRAPPED)}
    state = whole_state(state, keep=write)
    if write:
        adapter.save_pretrained(directory)
        prefixed = {f"base_model.model.{_written(name)}": tensor.contiguous() for name, tensor in state.items()}
        save_file(prefixed, directory / "adapter_model.safetensors", {"format": "pt"})


def _written(name: str) -> str:
    """Return the name of an adapter's weight in a file that both peft and transformers read whole.

    peft writes DoRA's vectors without the last part of their name, and transformers then leaves them out.
    """
    return f"{name}.weight" if name.endswith(".lora_magnitude_vector") else name


def _save_plain(model: Any, state: dict[str, Tensor], directory: Path, *, write: bool) -> None:
    """Write a model of this class with the weights `state`, without an adapter, as an HF directory."""
    if not write:
        return
    with torch.device("meta"):  # an empty shell around the weights: no copy in memory
        plain = type(model)(model.config)
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    if hasattr(model, "generation_config"):  # a reward model has none
        plain.generation_config = model.generation_config
    plain.save_pretrained(directory)
