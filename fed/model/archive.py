"""Archives: weights of a trained model, which a run loads over those of its own model."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fed.config.places import check_archive
from fed.model import weight_files
from fed.model.arrays import not_finite
from fed.model.pretrained import REPORT, from_pretrained, in_words

# Attention masks and rotary tables that older checkpoints carry and current models compute themselves.
DERIVED_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")


def load_archive(model: Any, path: Path) -> None:
    """Overwrite all weights of the model with those of an archive.

    An archive is an HF directory, a run's checkpoint, a *.safetensors file, or the original code's `policy.pt` (a dict
    with the weights under "state"). No pickled object is ever run.

    Raises:
        ValueError: If the archive cannot be read, or lacks a weight, or has one that the model does not have.
    """
    if weight_files.is_checkpoint(path):
        state = weight_files.read(path)
    else:
        state = _read_directory(model, path) if path.is_dir() else _read_file(path)
    own = model.state_dict()
    _check_tensors(path, state, own)
    common = sorted(own.keys() & state.keys())
    values: dict[int, Tensor] = {}  # by memory, which tied weights share
    for name in common:
        values.setdefault(own[name].data_ptr(), state[name])
    problems = {
        "missing": [name for name in own if own[name].data_ptr() not in values],
        "unknown": sorted(n for n in state.keys() - own.keys() if not n.endswith(DERIVED_BUFFERS)),
        "of another shape": [name for name in common if own[name].shape != state[name].shape],
        "tied in the model only": [n for n in common if not torch.equal(values[own[n].data_ptr()], state[n])],
    }
    found = {problem: names for problem, names in problems.items() if names}
    if found:
        counts = ", ".join(f"{len(names)} weights {problem} (first: {names[0]})" for problem, names in found.items())
        raise ValueError(f"archive {path} does not match the model: {counts}; give an archive of the same architecture")
    model.load_state_dict({name: state[name] for name in common}, strict=False)


def _check_tensors(path: Path, state: Mapping[Any, Tensor], own: Mapping[str, Tensor]) -> None:
    """Check that a file's tensors are such as weights are: dense, present, floating-point.

    Raises:
        ValueError: If one is not; the others would fail later, in torch's words.
    """
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise ValueError(f"archive {path} names a weight {name!r:.40}; expected text")
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.layout != torch.strided or tensor.is_quantized:
            kind = f"{kind}, sparse or quantized"
        elif tensor.is_meta:
            kind = "no values"
        elif name not in own or tensor.dtype == own[name].dtype or tensor.is_floating_point():
            continue
        raise ValueError(f"archive {path} has {name} with {kind}; expected dense floating-point numbers")
    if (odd := not_finite({name: tensor for name, tensor in state.items() if name in own})) is not None:
        raise ValueError(f"archive {path} has numbers that are not finite, in {odd} for one; give other weights")


def _read_directory(model: Any, path: Path) -> dict[str, Tensor]:
    """Return the directory's weights under this model's names: transformers knows shards, prefixes and new names."""
    own = {"config": model.config, "dtype": model.dtype}
    loaded, report = from_pretrained("archive", type(model).from_pretrained, str(path), None, False, **own, **REPORT)
    found = {name: tensor for name, tensor in loaded.state_dict().items() if name not in report["missing_keys"]}
    foreign = {*report["unexpected_keys"], *(name for name, *_ in report["mismatched_keys"])}
    return {**found, **{name: torch.empty(0) for name in foreign}}


def _read_file(path: Path) -> dict[str, Tensor]:
    check_archive(path)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"cannot read archive {path}: it is damaged or holds more than tensors, and pickled code is never run | "
            "expected *.safetensors, or a policy.pt of tensors only"
        ) from error
    except Exception as error:  # whatever a damaged or foreign file makes the readers raise
        raise ValueError(
            f"cannot read archive {path}: {in_words(error)} | expected *.safetensors, or a policy.pt of tensors only"
        ) from error
    state = content.get("state", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"archive {path} holds no weights; expected a policy.pt with a dict of tensors under 'state'")
    return state
