"""Digests of a model and its tokenizer, which server and clients compare before a run."""

import hashlib
from typing import Any

from fed.model.arrays import model_tensors
from fed.model.lora import has_adapter
from fed.model.policy import Policy
from fed.model.references import tensors_hash, weights_hash

# Keys of a model's configuration that may differ: its place, its file's format and the library's version.
NOT_COMPARED = {"_name_or_path", "architectures", "transformers_version", "dtype", "torch_dtype", "quantization_config"}
PROBE = "\n\nHuman: Ünïcode, 12,345 and <b>tags</b>?\n\nAssistant: I don't know...\t\u2014 really  not!"


def identity(policy: Policy, weights: str | None = None) -> dict[str, str]:
    """Compute the SHA-256 of each part of a model before any training, by the part's name in messages.

    Args:
        policy: The model with its initial weights.
        weights: The result of `weights_hash`, if it is known.
    """
    config = {key: value for key, value in policy.model.config.to_dict().items() if key not in NOT_COMPARED}
    tokenizer: Any = policy.tokenizer
    vocabulary = sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id, tokenizer(PROBE)["input_ids"]
    weights = weights or weights_hash(policy)
    parts = {"weights": weights, "configuration": _sha(sorted(config.items())), "tokenizer": _sha(vocabulary)}
    if has_adapter(policy.model):
        parts["adapter before training"] = tensors_hash(model_tensors(policy.model))
    return parts


def difference(ours: dict[str, str], theirs: dict[str, str]) -> str | None:
    """Name the first part that differs between server and client, with both digests; None: all are the same."""
    for name in {**ours, **theirs}:
        one, other = ours.get(name, "none"), theirs.get(name, "none")
        if one != other:
            return f"the SHA-256 of its {name} is {one[:12]}..., the server's {other[:12]}..."
    return None


def _sha(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
