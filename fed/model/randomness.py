"""The random parts of a model, dropout for one, switched off: DPO compares log-probs of the same weights."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

# Parts of the names that configurations give to them: attention_dropout, resid_pdrop, layerdrop, router_jitter_noise.
RANDOM = ("drop", "jitter")


def without_randomness(config: Any) -> dict[tuple[str, ...], float]:
    """Set every random part of a transformers configuration to 0, nested ones too, and return their values by path."""
    found = dict(_random(config))
    put_back(config, dict.fromkeys(found, 0.0))
    return found


def put_back(config: Any, values: Mapping[tuple[str, ...], float]) -> None:
    """Give a configuration the values that `without_randomness` returned.

    Modules read them when they are made, so a model keeps its zeros; whoever trains the saved model has its own values.
    """
    for path, value in values.items():
        node = config
        for name in path[:-1]:
            node = getattr(node, name)
        setattr(node, path[-1], value)


def switch_off(model: nn.Module) -> None:
    """Put the model into evaluation mode, but for the modules that recompute activations: they do so in training only.

    What is random in such a module itself was made with 0.
    """
    model.eval()
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True  # of this module alone, not of those inside it


def _random(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    for key, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _random(value, (*path, key))
        elif isinstance(value, float) and any(part in key for part in RANDOM):
            yield (*path, key), value
