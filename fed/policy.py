"""The one model of a run: load it, score pairs with it, save it.

Shapes: B pairs, N sequences, T tokens, R response tokens, D hidden size, V vocabulary.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fed.batches import Batch, Example, PairLogps, Tokenizer, as_logps, by_length, collate
from fed.config import ModelSettings
from fed.demo import demo_model, demo_tokenizer
from losses.logps import Logps, summed_logps

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Attention masks and rotary tables that older checkpoints carry and current models compute themselves.
DERIVED_BUFFERS = (".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias", ".inv_freq")


@dataclass(frozen=True)
class Policy:
    """A causal language model with its tokenizer and the precision it computes in."""

    model: Any  # transformers.PreTrainedModel
    tokenizer: Tokenizer
    device: torch.device
    compute_dtype: torch.dtype | None = None  # None: the dtype of the weights
    split_head: bool = True  # the logits are head(hidden states), so the head can run on response rows only

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which forward passes compute."""
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)


def response_logps(policy: Policy, batch: Batch) -> Logps:
    """Summed response log-probs of each sequence of a batch, float32, with gradient."""
    model = policy.model
    with policy.autocast():
        if policy.split_head:
            hidden_NTD = model.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state
            head: Callable[[Tensor], Tensor] = model.get_output_embeddings()
        else:
            hidden_NTD = model(input_ids=batch.input_ids, use_cache=False).logits
            head = nn.Identity()
        rows_RD = hidden_NTD.flatten(0, 1).index_select(0, batch.rows)
        logps_N = summed_logps(rows_RD, head, batch.targets, batch.sequence, len(batch.lengths))
    return as_logps(logps_N, batch.lengths, batch.paired)


@torch.no_grad()
def pair_logps(policy: Policy, examples: Sequence[Example], *, batch_size: int) -> list[PairLogps]:
    """Log-probs of every pair, in order. The same examples in the same batch size give the same bits."""
    found: list[PairLogps | None] = [None] * len(examples)
    for indices in by_length(examples, batch_size):
        logps = response_logps(policy, collate([examples[i] for i in indices], device=policy.device))
        assert logps.rejected is not None
        for i, chosen, rejected in zip(indices, logps.chosen.tolist(), logps.rejected.tolist(), strict=True):
            found[i] = PairLogps(chosen, rejected)
    return [pair for pair in found if pair is not None]


def with_reference(
    policy: Policy, examples: Sequence[Example], *, batch_size: int, cache: Path | None, weights_hash: str
) -> list[Example]:
    """The examples with their reference column: log-probs under the policy as it is now, before any training.

    Cached in `cache` under a hash of the weights, the tokens and what else decides the bits; an unreadable entry is
    computed anew. None: no cache.
    """
    if not examples:
        return []
    entry = (
        None if cache is None else cache / f"reference-{_content_hash(policy, examples, batch_size, weights_hash)}.npy"
    )
    column = None if entry is None else _read_column(entry, len(examples))
    if column is None:
        column = pair_logps(policy, examples, batch_size=batch_size)
        if entry is not None:
            _write_column(entry, column)
    return [replace(example, reference=pair) for example, pair in zip(examples, column, strict=True)]


def weights_hash(policy: Policy) -> str:
    """SHA-256 of names, shapes and bytes of all parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _content_hash(policy: Policy, examples: Sequence[Example], batch_size: int, weights: str) -> str:
    settings = (weights, str(policy.compute_dtype), policy.device.type, batch_size, torch.__version__)
    digest = hashlib.sha256(repr((*settings, torch.get_num_threads())).encode())
    for example in examples:
        for ids in (example.prompt, example.chosen, example.rejected):
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return digest.hexdigest()[:32]


def _read_column(entry: Path, length: int) -> list[PairLogps] | None:
    try:
        values = np.load(entry, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if values.shape != (length, 2) or values.dtype != np.float64 or not np.isfinite(values).all():
        return None
    return [PairLogps(float(chosen), float(rejected)) for chosen, rejected in values]


def _write_column(entry: Path, column: Sequence[PairLogps]) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = entry.with_suffix(f".{os.getpid()}.partial")
    with partial.open("wb") as file:
        np.save(file, np.asarray(column, dtype=np.float64), allow_pickle=False)
    partial.replace(entry)


def load_policy(settings: ModelSettings, *, device: torch.device, activation_checkpointing: bool = False) -> Policy:
    """Model, tokenizer and archive as `settings` name them, dropout off, on `device`.

    Raises:
        ValueError: If anything cannot be loaded or does not fit together, with the way out.
    """
    dtype = _dtype("model.policy_dtype", settings.policy_dtype)
    if settings.reference_dtype not in (None, settings.policy_dtype):
        raise ValueError(
            f"model.reference_dtype={settings.reference_dtype} differs from policy_dtype={settings.policy_dtype}: "
            "round 0 would measure rounding noise instead of ties; leave it null"
        )
    if settings.name_or_path is None and settings.gguf_file is None:
        raise ValueError("no model is given; set model.name_or_path (a directory or a hub name) or model.gguf_file")
    tokenizer = _load_tokenizer(settings)
    model = _load_model(settings, tokenizer, dtype)
    if settings.archive is not None:
        _load_archive(model, Path(settings.archive))
    if settings.block_name is not None:
        _check_block_name(model, settings.block_name)
    if activation_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()  # checkpointing is only active in training mode; dropout is off either way
    model.to(device)
    mixed = settings.fsdp_policy_mp
    compute = None if mixed is None else _dtype("model.fsdp_policy_mp", mixed)
    policy = Policy(model, tokenizer, device, None if compute == dtype else compute)
    return replace(policy, split_head=_head_can_be_split(policy))


def save_policy(policy: Policy, directory: Path) -> None:
    """Write an HF directory: `AutoModelForCausalLM.from_pretrained(directory)` loads it."""
    policy.model.save_pretrained(directory)
    policy.tokenizer.save_pretrained(directory)  # type: ignore[attr-defined]


def _dtype(key: str, name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"{key}={name} is not a dtype; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


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
    return tokenizer


def _load_model(settings: ModelSettings, tokenizer: Any, dtype: torch.dtype) -> Any:
    name, gguf, trust = settings.name_or_path or ".", settings.gguf_file, settings.trust_remote_code
    if name == "demo" and gguf is None:
        return demo_model(tokenizer).to(dtype)
    config = _from_pretrained("model", AutoConfig.from_pretrained, name, gguf, trust)
    for key, value in vars(config).items():  # DPO compares log-probs of the same weights: dropout would be noise
        if ("dropout" in key or key.endswith("pdrop")) and isinstance(value, float):
            setattr(config, key, 0.0)
    model = _from_pretrained(
        "model", AutoModelForCausalLM.from_pretrained, name, gguf, trust, config=config, dtype=dtype
    )
    if gguf is not None:
        model = _without_quantization(model, dtype)
    embedded = model.get_input_embeddings().num_embeddings
    if embedded < len(tokenizer):
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens but model {name} embeds {embedded}; they do not fit"
        )
    return model


def _from_pretrained(what: str, load: Callable[..., Any], name: str, gguf: str | None, trust: bool, **more: Any) -> Any:
    """What `load` returns, its failures told in one line."""
    if gguf is not None:
        file = Path(name) / gguf if (Path(name) / gguf).is_file() else Path(gguf)
        if not file.is_file():
            raise ValueError(f"model.gguf_file={gguf}: no such file")
        name, more = str(file.parent), {**more, "gguf_file": file.name}
    elif name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise ValueError(f"model directory {name} does not exist; give a directory or a hub name")
    try:
        return load(
            str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name, trust_remote_code=trust, **more
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"cannot load the {what} of {name}: {reason} | expected a directory with config, tokenizer and "
            "weights, a GGUF file "
            "(model.gguf_file=), or a hub name with the hub reachable (HF_HUB_OFFLINE unset)"
        ) from error


def _without_quantization(model: Any, dtype: torch.dtype) -> Any:
    """The same weights in a plain model: one loaded from GGUF refuses to be saved."""
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
    plain.load_state_dict(model.state_dict())
    return plain


def _load_archive(model: Any, path: Path) -> None:
    """Overwrite the weights; every one of them must be there and fit.

    Reads an HF directory, a *.safetensors file, or the original code's `policy.pt` (a dict with the weights under
    "state"). No pickled object is ever run.
    """
    state = _read_archive(path)
    own = model.state_dict()
    tied = {name for name in own if own[name].data_ptr() in {own[other].data_ptr() for other in state if other in own}}
    missing = sorted(set(own) - set(state) - tied)
    unknown = sorted(name for name in set(state) - set(own) if not name.endswith(DERIVED_BUFFERS))
    wrong = sorted(name for name in set(own) & set(state) if own[name].shape != state[name].shape)
    if missing or unknown or wrong:
        shown = (missing or unknown or wrong)[0]
        raise ValueError(
            f"archive {path} does not match the model: {len(missing)} weights missing, {len(unknown)} unknown, "
            f"{len(wrong)} of "
            f"another shape (first: {shown}); give the archive of this very architecture"
        )
    model.load_state_dict({name: state[name] for name in state if name in own}, strict=False)


def _read_archive(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        shards = sorted(path.glob("*.safetensors"))
        if not shards:
            raise ValueError(f"archive {path} holds no *.safetensors file")
        return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    if not path.is_file():
        raise ValueError(f"archive {path} does not exist")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the readers raise
        raise ValueError(f"cannot read archive {path}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    state = content.get("state", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"archive {path} holds no weights; expected a policy.pt with a dict of tensors under 'state'")
    return state


def _check_block_name(model: Any, block_name: str) -> None:
    classes = {type(module).__name__ for module in model.modules()}
    if block_name not in classes:
        repeated = sorted(name for name in classes if "Block" in name or "Layer" in name)
        raise ValueError(f"model.block_name={block_name} is no module of the model; it has {', '.join(repeated)}")


@torch.no_grad()
def _head_can_be_split(policy: Policy) -> bool:
    """Whether head(hidden states) gives the model's own logits: not so where it scales or caps them."""
    model = policy.model
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    ids = torch.arange(8, device=policy.device)[None] % math.prod(head.weight.shape[:1])
    split = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    return torch.allclose(split, model(input_ids=ids, use_cache=False).logits, rtol=1e-4, atol=1e-4)
