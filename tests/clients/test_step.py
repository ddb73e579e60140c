"""The objective and the gradient of one optimizer step, against formulas and plain torch."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import losses.fused
from clients.optimizers import make_optimizer
from clients.settings import RoundSettings
from clients.state import ClientState
from clients.step import Step
from clients.trainer import LocalTrainer
from fed.data.collate import Layout, collate
from fed.data.order import BatchOrder
from fed.model.policy import Policy, response_logps
from fed.model.probe import start_packing
from losses.sft import sft
from support.federations import dpo_loss
from support.pairs import examples
from support.training import copied, referenced, same, settings, train, weights


def test_the_anchor_term_is_zero_at_the_first_step_of_a_round_and_not_later(policy):
    pairs = referenced(policy, examples(13))
    for number in range(2):  # the second round starts from other weights and must be anchored to those
        state = ClientState(batches=7 * number)
        for norm in ("token", "sum"):
            start = copied(policy)
            _, told = train(start, pairs, state=copy.deepcopy(state), alpha=1.0, anchor_norm=norm, batch_size=2)
            terms = [tags["anchor/train"] for _, tags, _ in told]
            assert terms[0] == 0.0
            assert all(term > 0 for term in terms[1:])
        train(policy, pairs, state=state)


def test_alpha_zero_is_bit_identical_to_not_having_the_term(policy):
    pairs = referenced(policy, examples(9))
    without = copied(policy)
    _, told = train(policy, pairs, alpha=0.0)
    train(without, [copy.copy(pair) for pair in pairs])
    assert same(weights(policy), weights(without))
    assert not any("anchor/train" in tags for _, tags, _ in told)


def test_a_large_alpha_holds_the_policy_near_the_received_one(policy):
    pairs = referenced(policy, examples(16))
    held, free = copied(policy), copied(policy)
    train(held, pairs, alpha=1000.0, anchor_norm="sum", optimizer="SGD", lr=1e-4, local_epochs=5)
    train(free, pairs, alpha=0.0, optimizer="SGD", lr=1e-4, local_epochs=5)

    def moved(p: Policy) -> float:
        before, after = (response_logps(p, collate(pairs)) for p in (policy, p))
        return float((before.chosen - after.chosen).detach().abs().mean())

    assert moved(held) < moved(free)


def test_an_example_has_the_same_anchor_whatever_batch_repeats_it(policy):
    pairs = referenced(policy, examples(5))
    trainer = LocalTrainer(policy, settings(alpha=1.0, batch_size=2))
    steps = BatchOrder(5, 2, 0, 0).batches(0, 9)
    filled = trainer.with_anchor(pairs, steps)
    exact = response_logps(policy, collate(pairs)).detach()
    np.testing.assert_allclose([e.anchor.chosen for e in filled], exact.chosen.tolist(), rtol=1e-5)
    np.testing.assert_allclose([e.anchor.rejected for e in filled], exact.rejected.tolist(), rtol=1e-5)


def test_a_step_within_the_token_budget_is_the_plain_step_on_those_pairs(policy):
    """Steps as BatchOrder cuts them; in two micro-batches, and packed, the weights are the same up to rounding."""
    pairs = referenced(policy, examples(12))
    tokens = [len(p.prompt) * 2 + 2 * (max(len(p.chosen), len(p.rejected)) - 1) for p in pairs]
    steps = BatchOrder(12, 4, 0, 0, tokens=tokens, max_tokens=50, padded=True).epoch(0)
    assert len({len(step) for step in steps}) > 1, "the steps must differ in pairs"
    plain = copied(policy)
    optimizer = torch.optim.SGD(plain.model.parameters(), lr=0.1)
    for indices in steps:
        batch = collate([pairs[i] for i in indices])
        dpo_loss(response_logps(plain, batch), batch.reference).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    budget = {"max_tokens_per_step": 50, "optimizer": "SGD", "lr": 0.1, "max_grad_norm": 1e9}
    in_two = copied(policy)

    train(policy, pairs, **budget)
    train(in_two, pairs, **budget, gradient_accumulation_steps=2)

    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(policy)[name], weight, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(weights(in_two)[name], weight, rtol=1e-5, atol=1e-7)


def test_packed_shared_and_fused_training_is_padded_training(policy):
    pairs = referenced(policy, examples(12))
    quick = copied(policy)
    assert start_packing(quick.model, 64) is None
    changes = {"optimizer": "SGD", "lr": 0.1, "alpha": 0.5, "anchor_norm": "sum", "local_epochs": 2}
    plain_metrics, _ = train(policy, pairs, **changes)
    metrics, _ = train(replace(quick, layout=Layout()), pairs, **changes)
    for found in (metrics, plain_metrics):  # ties of the first step are decided by the last bit
        del found["accuracy"], found["ties"]
    assert metrics == pytest.approx(plain_metrics, rel=1e-4, abs=1e-6)
    for name, weight in weights(policy).items():
        torch.testing.assert_close(weights(quick)[name], weight, rtol=1e-4, atol=1e-6)


def test_accumulating_gradients_over_micro_batches_changes_nothing(policy):
    pairs = referenced(policy, examples(10))  # the last batch of 4 + 4 + 2 is not full
    whole = copied(policy)
    train(whole, pairs, batch_size=4, optimizer="SGD", lr=0.1)
    train(policy, pairs, batch_size=4, gradient_accumulation_steps=4, optimizer="SGD", lr=0.1)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(weights(policy)[name], weight, rtol=1e-5, atol=1e-7)


def test_proximal_mu_adds_the_gradient_of_half_mu_times_the_squared_distance(policy):
    pairs = referenced(policy, examples(4))
    mu, lr = 3.0, 0.1
    plain = copied(policy)
    parameters = dict(plain.model.named_parameters())
    start = {name: p.detach().clone() for name, p in parameters.items()}
    optimizer = torch.optim.SGD(plain.model.parameters(), lr=lr)
    for indices in BatchOrder(4, 2, 0, 0).batches(0, 2):
        batch = collate([pairs[i] for i in indices])
        loss = dpo_loss(response_logps(plain, batch), batch.reference).mean()
        loss = loss + mu / 2 * sum(((p - start[name]) ** 2).sum() for name, p in parameters.items())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    changes = {"batch_size": 2, "optimizer": "SGD", "lr": lr, "max_grad_norm": 1e9}
    train(policy, pairs, this_round=RoundSettings(proximal_mu=mu), **changes)

    for name, weight in weights(plain).items():
        torch.testing.assert_close(weights(policy)[name], weight, rtol=1e-5, atol=1e-7)


def test_decay_scales_the_learning_rate_or_the_loss_as_asked(policy):
    """SGD moves by lr x gradient, so both halve the step; AdamW normalises the gradient, so only `lr` does."""
    pairs = referenced(policy, examples(4))
    before = weights(policy)

    def step(decay: float, **changes) -> float:
        moved = copied(policy)
        train(moved, pairs, this_round=RoundSettings(decay=decay), batch_size=4, **changes)
        return float(sum((weights(moved)[name] - before[name]).abs().sum() for name in before))

    for target in ("lr", "loss"):
        ratio = step(0.5, decay_target=target, optimizer="SGD") / step(1.0, decay_target=target, optimizer="SGD")
        assert ratio == pytest.approx(0.5, rel=2e-3)
    adamw = {"optimizer": "AdamW", "lr": 1e-4}
    assert step(0.5, decay_target="lr", **adamw) / step(1.0, **adamw) == pytest.approx(0.5, rel=2e-2)
    assert step(0.5, decay_target="loss", **adamw) / step(1.0, **adamw) == pytest.approx(1.0, rel=2e-2)


def test_supervised_training_can_be_anchored_too(policy):
    _, told = train(policy, examples(8), loss=sft, supervised=True, alpha=1.0)
    assert told[0][1]["anchor/train"] == 0.0 < told[1][1]["anchor/train"]


class Readings(TorchDispatchMode):
    """A count of the numbers that Python reads from tensors: for each it waits for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_a_step_reads_as_few_numbers_from_many_blocks_of_logits_as_from_one(policy, monkeypatch):
    pairs, counts = referenced(policy, examples(8)), []
    for rows in (1000, 6):
        monkeypatch.setattr(losses.fused, "BLOCK_BYTES", 4 * 31 * rows)
        step = Step(replace(copied(policy), layout=Layout(packing=False)), settings(batch_size=8))
        optimizer = make_optimizer("SGD", step.parameters.values(), 1e-3)
        with Readings() as readings:
            step.take(optimizer, pairs, RoundSettings(), {})
        counts.append(readings.count)
    assert counts[0] == counts[1] > 0
