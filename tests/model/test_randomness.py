"""Randomness is off in two ways, each of them alone: no configuration hides any, and modules are in evaluation mode."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, Gemma3Config, GPT2Config, PhimoeConfig, PreTrainedConfig

from fed.config.groups import LoraSettings, ModelSettings
from fed.model import loading, sharded
from fed.model.generation import Draws, generate
from fed.model.randomness import put_back, switch_off, without_randomness
from support.policies import load


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (GPT2Config(resid_pdrop=0.3), ("resid_pdrop",)),
        (PhimoeConfig(router_jitter_noise=0.3), ("router_jitter_noise",)),
        (PhimoeConfig(input_jitter_noise=0.3), ("input_jitter_noise",)),
        (Gemma3Config(text_config={"attention_dropout": 0.3}), ("text_config", "attention_dropout")),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else "",
)
def test_no_configuration_hides_randomness(config: PreTrainedConfig, path: tuple[str, ...]) -> None:
    def value() -> float:
        node = config
        for name in path:
            node = getattr(node, name)
        return node

    found = without_randomness(config)
    assert found[path] == 0.3 and value() == 0
    put_back(config, found)
    assert value() == 0.3


def test_with_checkpointing_only_modules_that_recompute_are_in_training_mode() -> None:
    model = load(activation_checkpointing=True).model
    training = [module for module in model.modules() if module.training]
    assert training and all(module.gradient_checkpointing for module in training)
    assert len(training) < len([*model.modules()]) / 2


def test_dropout_that_no_configuration_names_is_off_with_checkpointing_too() -> None:
    """Code of the model's own can have it; it lies inside a module that recomputes."""
    model = load(activation_checkpointing=True).model
    layer = next(module for module in model.modules() if module.training and [*module.children()])
    layer.own = nn.Dropout(0.5)
    switch_off(model)
    assert torch.equal(layer.own(torch.ones(99)), torch.ones(99)) and layer.training


def test_drawing_responses_leaves_every_module_in_its_mode() -> None:
    policy = load(activation_checkpointing=True)
    before = [module.training for module in policy.model.modules()]
    generate(policy, [(5, 6, 7)], Draws(2, 1))
    assert [module.training for module in policy.model.modules()] == before and any(before)


def test_a_model_that_processes_split_has_no_dropout_and_keeps_its_own_in_its_files(gpt2: Path) -> None:
    stored = AutoConfig.from_pretrained(gpt2)
    assert stored.resid_pdrop > 0
    model = sharded._empty_model(replace(loading._source(ModelSettings(name_or_path=str(gpt2))), lora=LoraSettings()))
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert model.config.resid_pdrop == stored.resid_pdrop
