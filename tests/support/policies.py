"""Policies loaded from settings, and what tests compare of them."""

import pytest
import torch

from fed.config.groups import ModelSettings
from fed.model.loading import load_policy
from fed.model.placement import Placement
from fed.model.policy import Policy
from support.pairs import examples

CPU = torch.device("cpu")
PAIRS = examples(9, vocabulary=257)
DTYPES = ("float32", "bfloat16")


def load(name: object = "demo", *, activation_checkpointing: bool = False, **more: object) -> Policy:
    torch.manual_seed(0)
    settings = ModelSettings(name_or_path=None if name is None else str(name), **more)
    return load_policy(settings, Placement(CPU), activation_checkpointing=activation_checkpointing)


def refusal(name: object = "demo", **more: object) -> str:
    """Return the message of the `ValueError` that loading raises, and check that it has one line."""
    with pytest.raises(ValueError) as caught:
        load(name, **more)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(40)[None]).logits
