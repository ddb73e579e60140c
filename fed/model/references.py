"""The reference log-probabilities: a constant column of the data, computed once and cached on disk."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from torch import Tensor

from fed.cpu.onednn import uses_onednn
from fed.cpu.runtime import cpu_name
from fed.data.examples import Example, Examples, PairLogps, are_pairs
from fed.distributed.shards import full
from fed.files import read_array, write_array
from fed.model.lora import adapter_off, base_state
from fed.model.policy import OnPairs, Policy, pair_logps

FORMAT = 3  # raised when our own arithmetic changes its last bits


def with_reference(
    policy: Policy,
    examples: Sequence[Example],
    *,
    batch_size: int,
    cache: Path | None,
    weights_hash: str,
    on_pairs: OnPairs = lambda pairs: None,
) -> Examples:
    """Fill the examples' reference column: their log-probs under the policy as it is now, before any training.

    A policy with an adapter can fill it at any time: it computes with the adapter off.

    Args:
        policy: The reference.
        examples: The pairs, in the order that decides their batches.
        batch_size: Pairs at a time.
        cache: Folder of columns, named by a hash of all that decides the bits; unreadable ones are made again.
        weights_hash: The result of `weights_hash` for this policy.
        on_pairs: Called with the number of pairs that were just done.

    Raises:
        CannotWrite: If the disk refuses the cache's file.
    """
    if not examples:
        return Examples.of([])
    if policy.scores:  # they are compared with those of other responses, not of another model
        return Examples.of(examples).with_reference(np.zeros((len(examples), 2)))
    name, paired = f"reference-{_content_hash(policy, examples, batch_size, weights_hash)}.npy", are_pairs(examples)
    column = None if cache is None else _read_column(cache / name, len(examples), paired=paired)
    found = all(policy.ranks.gather(column is not None))
    if not all(policy.holders.gather(found)):  # either all processes compute or none does
        with adapter_off(policy.model):
            column = pair_logps(policy, examples, batch_size=batch_size, paired=paired, on_pairs=on_pairs)
        if cache is not None and policy.ranks.is_first:
            write_array(cache / name, np.asarray(column, dtype=np.float64))
    else:
        on_pairs(len(examples))
    assert column is not None
    return Examples.of(examples).with_reference(np.asarray(column, dtype=np.float64))


def weights_hash(policy: Policy) -> str:
    """Compute the SHA-256 of all parameters and persistent buffers, without those of an adapter."""
    return tensors_hash(base_state(policy.model))


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = full(tensor.detach())
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _content_hash(policy: Policy, examples: Sequence[Example], batch_size: int, weights: str) -> str:
    config = policy.model.config  # the same weights with, say, another rotary base are another model
    settings = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
    is_cuda = policy.device.type == "cuda"
    machine = torch.cuda.get_device_name(policy.device) if is_cuda else cpu_name()
    decides_the_bits = (
        weights,
        sorted(settings.items()),
        config._attn_implementation,
        policy.compute_dtype,
        policy.split_head,
        policy.layout,
        uses_onednn(policy.model),
        policy.holders.count if policy.root is None else 1,  # processes that share a layer add up its parts
        batch_size,
        FORMAT,
        (policy.device.type, machine, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
        (torch.__version__, transformers.__version__),
    )
    digest = hashlib.sha256(repr(decides_the_bits).encode())
    for example in examples:
        for ids in (example.prompt, example.chosen, example.rejected):
            digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
    return digest.hexdigest()[:32]


def _read_column(entry: Path, length: int, *, paired: bool) -> list[PairLogps] | None:
    values = read_array(entry)
    if values is None or values.shape != (length, 2) or values.dtype != np.float64:
        return None
    # Of responses with none to avoid, the second number is NaN.
    if not np.isfinite(values if paired else values[:, 0]).all():
        return None
    return [PairLogps(float(chosen), float(rejected)) for chosen, rejected in values]
