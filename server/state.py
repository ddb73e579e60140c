"""The state of a strategy between rounds, as a checkpoint holds it."""

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flwr.serverapp.strategy import Strategy

from fed.checkpoints.serialize import is_packable
from fed.distributed.ranks import Ranks
from server.ledgers import ClientLedger
from server.traits import layers


class StrategyState:
    """The attributes of a strategy and of those it wraps, as far as a file can hold them.

    If a strategy has `state_dict()` and `load_state_dict(state)`, PyTorch's names, these are used instead.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy

    def state_dict(self) -> list[Any]:
        """Return the state of each layer, outermost first."""
        return [layer.state_dict() if _tells(layer) else dict(_attributes(layer)) for layer in layers(self._strategy)]

    def load_state_dict(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore the state that `state_dict` returned."""
        for layer, state in zip(layers(self._strategy), states, strict=True):
            if _tells(layer):
                layer.load_state_dict(state)
            else:
                vars(layer).update(state)

    def left_out(self) -> list[str]:
        """Name the attributes, as Class.attribute, that no file can hold; a resumed run has them as newly made.

        Functions and classes are not named.
        """
        return [
            f"{type(layer).__name__}.{name}"
            for layer in layers(self._strategy)
            if not _tells(layer)
            for name, value in vars(layer).items()
            if not (is_packable(value) or _is_function(value) or isinstance(value, (Strategy, Ranks, ClientLedger)))
        ]


def _tells(layer: object) -> bool:
    return hasattr(layer, "state_dict") and hasattr(layer, "load_state_dict")


def _is_function(value: object) -> bool:
    """Return whether a value is a function without state, unlike a module, which can be called too."""
    return inspect.isroutine(value) or isinstance(value, (type, functools.partial))


def _attributes(layer: object) -> Iterator[tuple[str, Any]]:
    yield from ((name, value) for name, value in vars(layer).items() if is_packable(value))
