"""Layers that processes share give the numbers of whole ones: whole runs are compared."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import fed.distributed.tensor_parallel
from fed.config.groups import LoraSettings
from fed.distributed.tensor_parallel import problem
from support.families import FAMILIES, GATED
from support.split_models import EVEN, Saved, assert_same

SHARED = {"trainer": "TensorParallelTrainer"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "a bound on the gradient that bites": ("even heads, tied", {"max_grad_norm": 0.2}),
    "activations recomputed": ("even heads, untied, 31 tokens", {"activation_checkpointing": True}),
    "two micro-batches": ("even heads, normalized", {}),
    "an adapter": ("even heads, tied", {"lora": LoraSettings(r=2), "lr": 0.2}),
    "an adapter above norms of parts of the heads": ("even heads, normalized", {"lora": LoraSettings(r=2), "lr": 0.2}),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_that_share_layers_train_what_one_trains(saved: Saved, alone, together, case: str) -> None:
    family, changes = CASES[case]
    expected = alone(saved(family), **SHARED, **changes)
    found = together(2, saved(family), **SHARED, **changes)
    assert_same(found, expected)
    assert found[0].held < expected.held  # the second has as much: embeddings, norms and head are whole in both
    assert found[0].metrics["server", "validation"][0]["ties"] == 1


def test_two_groups_that_share_layers_train_what_one_process_trains(saved: Saved, alone, together) -> None:
    expected = alone(saved("even heads, tied"), **SHARED)
    assert_same(together(4, saved("even heads, tied"), **SHARED, clients_in_parallel=2), expected)


def test_norms_over_parts_of_the_heads_are_found_out_if_their_gradients_are_not_summed(
    saved: Saved, together, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(fed.distributed.tensor_parallel, "sum_shared_gradients", lambda model, mesh: None)
    with pytest.raises(Exception, match="differ from whole ones"):
        together(2, saved("even heads, normalized"), **SHARED)


@pytest.mark.parametrize(
    ("config", "processes", "reason"),
    [
        (FAMILIES["gpt2"], 2, "no tensor-parallel plan for GPT2LMHeadModel"),
        (LlamaConfig(**GATED), 2, "its 1 num_key_value_heads cannot be shared evenly by 2 processes"),
        (LlamaConfig(**EVEN), 3, "its 2 num_attention_heads cannot be shared evenly by 3 processes"),
        (LlamaConfig(**{**EVEN, "intermediate_size": 1}), 2, "leaves nothing to the last of 2 processes"),
        (LlamaConfig(**EVEN), 2, None),
    ],
)
def test_a_model_that_cannot_be_shared_is_named_with_the_reason(
    config: Any, processes: int, reason: str | None
) -> None:
    with torch.device("meta"):
        found = problem(AutoModelForCausalLM.from_config(config), processes)
    assert found is None if reason is None else reason in str(found)
