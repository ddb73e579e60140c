"""Models and tokenizers as files and hubs have them: directories, GGUF files, archives."""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fed.config.schema import ModelSettings
from fed.model import weight_files
from fed.model.demo import demo_model, demo_tokenizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# Attention masks and rotary tables that older checkpoints carry and current models compute themselves.
DERIVED_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")


# Have transformers say which weights it left random, instead of a log line or an exception that names none.
REPORT = {"output_loading_info": True, "ignore_mismatched_sizes": True}


def _dtype(key: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"{key}={name} is not a dtype; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _compute_dtype(settings: ModelSettings) -> torch.dtype | None:
    if settings.fsdp_policy_mp in (None, settings.policy_dtype):
        return None
    compute = _dtype("model.fsdp_policy_mp", settings.fsdp_policy_mp)
    if compute == torch.float32:
        raise ValueError(
            f"precision=float32 (or model.fsdp_policy_mp=float32) is not less than policy_dtype="
            f"{settings.policy_dtype}; set policy_dtype=float32, or leave precision out"
        )
    return compute


def _check_no_adapter(*folders: str | None) -> None:
    """Transformers would load base and adapter, but under other names and all frozen."""
    for folder in folders:
        if folder is not None and (Path(folder).expanduser() / "adapter_config.json").is_file():
            raise ValueError(
                f"{folder} holds an adapter, not a whole model; give what "
                "peft.AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload().save_pretrained(NEW) writes"
            )


def _load_tokenizer(settings: ModelSettings) -> Any:
    name = settings.tokenizer_name_or_path or settings.name_or_path or "."
    gguf = settings.gguf_file if settings.tokenizer_name_or_path is None else None
    if name == "demo" and gguf is None:
        return demo_tokenizer()
    tokenizer = _from_pretrained("tokenizer", AutoTokenizer.from_pretrained, name, gguf, settings.trust_remote_code)
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"the tokenizer of {name} has no end-of-text token, so a response could never end; set eos_token in its "
            "tokenizer_config.json or give model.tokenizer_name_or_path"
        )
    if not tokenizer("text")["input_ids"]:  # what transformers makes of a directory without a tokenizer
        raise ValueError(f"{name} holds no tokenizer that knows any text; give model.tokenizer_name_or_path")
    with tempfile.TemporaryDirectory() as folder:
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:  # found out at the end, it would cost the run its model
            raise ValueError(
                f"the tokenizer of {name} cannot be saved, as that of the trained model must be: {_one_line(error)}; "
                "mend its tokenizer_config.json or give model.tokenizer_name_or_path"
            ) from error
    return tokenizer


def _load_model(settings: ModelSettings, tokenizer: Any, dtype: torch.dtype) -> Any:
    name, gguf, trust = settings.name_or_path or ".", settings.gguf_file, settings.trust_remote_code
    if _is_demo(settings):
        return demo_model(tokenizer).to(dtype)
    config = _config(settings)
    model, report = _from_pretrained(
        "model", AutoModelForCausalLM.from_pretrained, name, gguf, trust, config=config, dtype=dtype, **REPORT
    )
    lacking = sorted({*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])})
    if lacking:  # transformers would go on with random ones
        raise ValueError(
            f"{name} lacks {len(lacking)} weights of {type(model).__name__} (first: {lacking[0]}); give a complete "
            "causal language model"
        )
    if gguf is not None:
        model = _without_quantization(model, dtype)
    _check_tokens(model, tokenizer, settings)
    return model


def _is_demo(settings: ModelSettings) -> bool:
    return settings.name_or_path == "demo" and settings.gguf_file is None


def _config(settings: ModelSettings) -> Any:
    """The model's configuration, without dropout: DPO compares log-probs of the same weights."""
    name, gguf, trust = settings.name_or_path or ".", settings.gguf_file, settings.trust_remote_code
    config = _from_pretrained("model", AutoConfig.from_pretrained, name, gguf, trust)
    for key, value in vars(config).items():
        if "drop" in key and isinstance(value, float):  # attention_dropout, resid_pdrop, layerdrop, ...
            setattr(config, key, 0.0)
    return config


def _check_tokens(model: Any, tokenizer: Any, settings: ModelSettings) -> None:
    embedded = model.get_input_embeddings().num_embeddings
    if embedded < len(tokenizer):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but model {settings.name_or_path or '.'} embeds {embedded}; "
            "they do not fit"
        )


def _from_pretrained(what: str, load: Callable[..., Any], name: str, gguf: str | None, trust: bool, **more: Any) -> Any:
    """What `load` returns, its failures told in one line."""
    if gguf is not None:
        file = Path(name) / gguf if (Path(name) / gguf).is_file() else Path(gguf)
        if not file.is_file():
            raise ValueError(f"model.gguf_file={gguf}: no such file")
        name, more = str(file.parent), {**more, "gguf_file": file.name}
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) and not folder.is_dir():
        raise ValueError(f"model directory {name} does not exist; give a directory or a hub name")
    try:
        return load(str(folder) if folder.is_dir() else name, trust_remote_code=trust, **more)
    except Exception as error:  # whatever a damaged, incomplete or foreign file makes the readers raise
        if not trust and "trust_remote_code" in str(error):
            raise ValueError(
                f"the {what} of {name} needs code of its own, which is not run; read the Python files beside it and, "
                "if you trust them, set model.trust_remote_code=true"
            ) from error
        raise ValueError(
            f"cannot load the {what} of {name}: {_one_line(error)} | expected a directory with config, tokenizer and "
            "weights, a GGUF file (model.gguf_file=), or a hub name with the hub reachable (HF_HUB_OFFLINE unset)"
        ) from error


def _one_line(error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError):
        return "its weights are damaged or hold more than tensors, and pickled code is never run"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _without_quantization(model: Any, dtype: torch.dtype) -> Any:
    """The same weights in a plain model: one loaded from GGUF refuses to be saved."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]):  # what is drawn next must not depend on the kind of file
        plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict(model.state_dict())
    return plain


def _load_archive(model: Any, path: Path) -> None:
    """Overwrite the weights; every one of them must be there and fit.

    Reads an HF directory, a run's checkpoint, a *.safetensors file, or the original code's `policy.pt` (a dict with the
    weights under "state"). No pickled object is ever run.
    """
    if weight_files.is_checkpoint(path):
        state = weight_files.read(path)
    else:
        state = _read_directory(model, path) if path.is_dir() else _read_file(path)
    own = model.state_dict()
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
        raise ValueError(
            f"archive {path} does not match the model: {counts}; give the archive of this very architecture"
        )
    model.load_state_dict({name: state[name] for name in common}, strict=False)


def _read_directory(model: Any, path: Path) -> dict[str, Tensor]:
    """Its weights under this model's names: transformers knows shards, prefixes and renamed weights."""
    own = {"config": model.config, "dtype": model.dtype}
    loaded, report = _from_pretrained("archive", type(model).from_pretrained, str(path), None, False, **own, **REPORT)
    found = {name: tensor for name, tensor in loaded.state_dict().items() if name not in report["missing_keys"]}
    foreign = {*report["unexpected_keys"], *(name for name, *_ in report["mismatched_keys"])}
    return {**found, **{name: torch.empty(0) for name in foreign}}


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"archive {path} does not exist; give an HF directory, a *.safetensors file or a policy.pt")
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
            f"cannot read archive {path}: {_one_line(error)} | expected *.safetensors, or a policy.pt of tensors only"
        ) from error
    state = content.get("state", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"archive {path} holds no weights; expected a policy.pt with a dict of tensors under 'state'")
    return state
