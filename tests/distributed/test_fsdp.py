"""A model split over several processes trains and scores as it does in one: whole runs are compared."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fed.config.groups import LoraSettings, ModelSettings
from fed.distributed.ranks import ONE_PROCESS, arrange
from fed.model.arrays import load_arrays, model_tensors, to_record
from fed.model.policy import pair_logps, response_logps
from losses.sft import sft
from support.pairs import examples
from support.ranks import in_ranks
from support.split_models import CPU, Saved, against_the_mean, assert_same, ipo_loss, load, loaded, same_bits

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied embeddings": ("llama, tied", {"comm_round": 3}),
    "untied embeddings, ipo, no anchor, prompts not shared": (
        "llama, untied",
        {"comm_round": 3, "loss": ipo_loss, "lr": 0.02, "alpha": 0.0, "prefix_sharing": False},
    ),
    "gpt2, supervised": ("gpt2", {"comm_round": 3, "loss": sft, "lr": 0.02}),
    "gpt2, its vocabulary": ("gpt2, its 50257 tokens", {"comm_round": 3}),
    "gpt-neox, a loss that mixes pairs, padded": ("gpt-neox", {"loss": against_the_mean, "packing": False}),
    "qwen2, steps of so many tokens, evaluated in between": (
        "qwen2",
        {"max_tokens_per_step": 60, "eval_every": 3, "do_first_eval": True, "decay_target": "loss"},
    ),
    "logits that the head does not make alone": ("gemma2, logits capped", {"anchor_norm": "sum", "alpha": 0.01}),
    "31 tokens, activations recomputed, held in main memory": (
        "llama, 31 tokens",
        {"activation_checkpointing": True, "cpu_offload": True},
    ),
    "an adapter": ("llama, untied", {"lora": LoraSettings(r=2), "lr": 0.2}),
    "an adapter of one row, activations recomputed": (
        "gpt2",
        {"lora": LoraSettings(r=1), "lr": 0.2, "activation_checkpointing": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(saved: Saved, alone, together, case: str) -> None:
    family, changes = CASES[case]
    expected = alone(saved(family), **changes)
    found = together(2, saved(family), **changes)
    assert_same(found, expected)
    assert sum(outcome.held for outcome in found) == expected.held
    before, wanted = (outcome.metrics["server", "validation"][0] for outcome in (found[0], expected))
    assert before == wanted and before["ties"] == 1  # the same bits


def test_four_processes_train_what_one_trains(saved: Saved, alone, together) -> None:
    """Two of them have no pair of a micro-batch of two; the processes have 12, 12, 12 and 11 of 47 rows."""
    assert_same(together(4, saved("llama, tied")), alone(saved("llama, tied")))


def test_a_gradient_is_clipped_by_its_whole_norm(saved: Saved, alone, together) -> None:
    expected, free = (alone(saved("llama, tied"), max_grad_norm=norm) for norm in (0.5, 10.0))
    assert min(line["grad_norm"] for line in expected.metrics["client-0", "train"]) > 0.5
    assert not same_bits(free.weights, expected.weights)
    assert_same(together(2, saved("llama, tied"), max_grad_norm=0.5), expected)


def test_two_processes_keep_each_clients_optimizer(saved: Saved, alone, together) -> None:
    """AdamW divides by the root of squared gradients, which turns rounding of tiny gradients into steps: 1e-3."""
    adam = {"optimizer": "AdamW", "lr": 3e-3}
    expected, forgetful = (alone(saved("llama, tied"), client_optimizer=c, **adam) for c in ("persist", "reset"))
    found = together(2, saved("llama, tied"), client_optimizer="persist", **adam)
    assert_same(found, expected, loss=1e-4, weights=1e-3)
    with pytest.raises(AssertionError):
        assert_same(found, forgetful, loss=1e-4, weights=1e-3)


def test_two_processes_in_bfloat16_train_what_one_trains_but_for_its_rounding(saved: Saved, alone, together) -> None:
    """One process adds along the model's depth in float32, FSDP in bfloat16, whose numbers are 2^-8 apart."""
    exact, one = alone(saved("llama, tied")), alone(saved("llama, tied"), precision="bfloat16")
    two, _ = together(2, saved("llama, tied"), precision="bfloat16")
    start, *_ = loaded(saved("llama, tied"))
    moved, rounding = (distance(exact.weights, other) for other in (start, one.weights))
    assert 1e-4 * moved < rounding
    assert rounding / 4 < distance(exact.weights, two.weights) < 4 * rounding < 0.2 * moved
    rounds = list(zip(*(outcome.metrics["server", "validation"] for outcome in (one, two)), strict=True))
    assert all(theirs["loss"] == pytest.approx(ours["loss"], rel=0.02) for ours, theirs in rounds)
    assert [metrics["ties"] for metrics in rounds[0]] == [1, 1]


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((one[name] - other[name]).square().sum()) for name in one))


# Forward passes


def logps_by_turns(model: ModelSettings, count: int) -> tuple[list[tuple[float, float]], list[int]]:
    """Return log-probs, and how many pairs were done at a time."""
    counts: list[int] = []
    policy = replace(load(model, ONE_PROCESS), ranks=arrange(1, CPU).world)
    found = pair_logps(policy, examples(count), batch_size=4, on_pairs=counts.append)
    return list(map(tuple, found)), counts


@pytest.mark.parametrize(("count", "turns"), [(3, [3]), (17, [8, 8, 1])])
def test_processes_that_take_turns_find_the_very_log_probs_of_one(saved: Saved, count: int, turns: list[int]) -> None:
    """There are one and five batches of four pairs: at the end, one process has nothing to do."""
    expected, _ = logps_by_turns(saved("llama, tied"), count)
    assert in_ranks(2, logps_by_turns, saved("llama, tied"), count) == [(expected, turns)] * 2


def logps_of_other_weights(settings: ModelSettings) -> list[list[float]]:
    """Return log-probs of the loaded weights, of weights times 1.5 written into the parts, and of the first again."""
    policy = load(settings, arrange(1, CPU))
    batch = policy.collate(examples(4))
    own = model_tensors(policy.model)
    before = {name: tensor.clone() for name, tensor in own.items()}
    found = []
    for factor in (1.0, 1.5, 1.0):
        load_arrays(policy.model, to_record({name: factor * tensor for name, tensor in before.items()}))
        with torch.no_grad():
            found.append(response_logps(policy, batch).chosen.tolist())
    return found


def test_weights_written_into_the_parts_are_those_of_the_next_forward_pass(saved: Saved) -> None:
    """FSDP keeps the root's weights whole after a pass without gradient unless it is told to split them."""
    first, second, third = logps_of_other_weights(saved("llama, tied"))
    assert first == third != second
    assert in_ranks(2, logps_of_other_weights, saved("llama, tied")) == [[first, second, first]] * 2
