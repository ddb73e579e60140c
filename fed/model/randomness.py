"""The random parts of a model, dropout for one, switched off: DPO compares log-probs of the same weights.

Only an adapter's own dropout, which the reference does not have, is switched on, and only while a step is computed.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from fed.seeding import seeded_globals

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


class AdapterDropout:
    """The dropout of a model's adapter; `bool` of it is False if there is none."""

    def __init__(self, model: nn.Module) -> None:
        layers: list[Any] = [module for module in model.modules() if hasattr(module, "lora_dropout")]
        dropouts = [part for layer in layers for part in layer.lora_dropout.values() if isinstance(part, nn.Dropout)]
        self._modules = [*layers, *dropouts] if dropouts else []  # peft asks the layers too, not the parts inside them

    def __bool__(self) -> bool:
        return bool(self._modules)

    @contextmanager
    def on(self, seed: int, *numbers: int) -> Iterator[None]:
        """Switch it on for the code inside; the draws depend on the arguments only."""
        if not self:
            yield
            return
        with seeded_globals(seed, "dropout", *numbers):
            self._set(True)
            try:
                yield
            finally:
                self._set(False)

    def _set(self, training: bool) -> None:
        for module in self._modules:
            module.training = training


def _random(config: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    for key, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _random(value, (*path, key))
        elif isinstance(value, float) and any(part in key for part in RANDOM):
            yield (*path, key), value
