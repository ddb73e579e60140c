"""Model and tokenizer from a directory, the hub, a GGUF file or code, and the archive that seeds their weights."""

import pickle
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import dispatch_model, infer_auto_device_map, init_empty_weights
from accelerate.utils import get_balanced_memory
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from fed.model import weight_files
from fed.data.collate import PADDED, Layout
from fed.config.schema import LoraSettings, ModelSettings
from fed.model.demo import demo_config, demo_model, demo_tokenizer
from fed.model.lora import add_adapter
from fed.model.policy import Policy
from fed.model.probe import head_can_be_split, specimen, start_packing
from fed.distributed.ranks import ALONE, ONE_PROCESS, Mesh
from fed.distributed.fsdp import Read, fill, from_files, from_first, run, shard
from fed.distributed.tensor_parallel import difference, problem, split, sum_shared_gradients

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Attention masks and rotary tables that older checkpoints carry and current models compute themselves.
DERIVED_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")
# Have transformers say which weights it left random, instead of a log line or an exception that names none.
REPORT = {"output_loading_info": True, "ignore_mismatched_sizes": True}


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
