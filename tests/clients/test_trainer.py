import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from torch import nn

from clients.settings import LocalSettings, RoundSettings
from clients.state import ClientState, read_state, write_state
from clients.trainer import LocalTrainer
from fed.data.collate import Layout, collate
from fed.data.order import BatchOrder
from fed.data.tokens import Example
from fed.model.policy import Policy, response_logps
from fed.model.probe import start_packing
from fed.model.references import with_reference
from fed.tracking.log import Log
from losses.preference import dpo
from losses.sft import sft
from support.local_settings import local_settings
from support.pairs import examples


def dpo_loss(policy, reference):
    return dpo(policy, reference, beta=0.5)


def settings(**changes) -> LocalSettings:
    quick = {"loss": dpo_loss, "optimizer": "AdamW", "lr": 1e-2, "warmup_steps": 0, "eval_batch_size": 8}
    return local_settings(**quick | changes)


class Updates(Log):
    """A log that collects the updates of a client."""

    def __init__(self) -> None:
        self.told = []

    def update(self, client_id, split, metrics, *, step):
        self.told.append((split, metrics, step))


def referenced(policy: Policy, pairs: list[Example]) -> list[Example]:
    return with_reference(policy, pairs, batch_size=8, cache=None, weights_hash="")


def train(policy: Policy, pairs, state=None, this_round=None, held_out=(), client_id=0, **changes):
    """Return the metrics, and the (split, tags, step) that were reported of each update."""
    log = Updates()
    metrics = LocalTrainer(policy, settings(**changes)).train(
        client_id, pairs, held_out, state or ClientState(), this_round or RoundSettings(), log
    )
    return metrics, log.told


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in policy.model.named_parameters()}


def copied(policy: Policy) -> Policy:
    return Policy(copy.deepcopy(policy.model), policy.tokenizer, policy.device)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_local_update_is_what_a_plain_torch_loop_does_bit_for_bit(policy):
    pairs = referenced(policy, examples(11))
    plain = copied(policy)
    optimizer = torch.optim.AdamW(plain.model.parameters(), lr=1e-2, fused=True)
    for indices in BatchOrder(11, 4, seed=0, client_id=0).batches(0, 3):
        batch = collate(sorted((pairs[i] for i in indices), key=lambda pair: -pair.length))
        (dpo_loss(response_logps(plain, batch), batch.reference) / len(indices)).sum().backward()
        nn.utils.clip_grad_norm_(plain.model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()

    train(policy, pairs)

    assert same(weights(policy), weights(plain))


def test_training_raises_the_accuracy_on_pairs_never_seen(policy):
    pairs = referenced(policy, examples(64))
    unseen = referenced(policy, examples(64, seed=1))
    _, told = train(policy, pairs, held_out=unseen, local_epochs=4, eval_every=64, do_first_eval=True)
    accuracies = [tags["rewards_eval/accuracies"] for split, tags, _ in told if split == "eval"]
    assert accuracies[0] == 0.0  # ties
    assert accuracies[-1] > 0.9


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
    del metrics["accuracy"], plain_metrics["accuracy"]  # ties of the first step are decided by the last bit
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


def test_the_learning_rate_warms_up_and_starts_over_only_when_the_optimizer_does(policy):
    pairs = referenced(policy, examples(8))
    for client_optimizer, second_round in (("reset", [0.25, 0.5]), ("persist", [0.75, 1.0])):
        state = ClientState()
        rates = []
        for _ in range(2):
            _, told = train(
                policy, pairs, state=state, warmup_steps=3, lr=1.0, batch_size=4, client_optimizer=client_optimizer
            )
            rates.append([tags["lr"] for _, tags, _ in told])
        assert rates == [[0.25, 0.5], second_round]


def test_a_persistent_optimizer_goes_on_as_if_never_stopped(policy):
    pairs = referenced(policy, examples(12))
    for optimizer in ("AdamW", "RMSprop", "Adam"):
        once, twice, context = copied(policy), copied(policy), {}
        changes = {"optimizer": optimizer, "client_optimizer": "persist", "lr": 1e-3}
        train(once, pairs, local_epochs=2, **changes)
        for _ in range(2):  # the state travels through the records of a Flower context
            state = read_state(records) if (records := context.get("state")) else ClientState()
            train(twice, pairs, state=state, **changes)
            context["state"] = RecordDict()
            write_state(context["state"], state)
        assert same(weights(once), weights(twice)), optimizer
        assert read_state(context["state"]).updates == 6


def test_a_reset_optimizer_leaves_no_state_behind(policy):
    state = ClientState()
    train(policy, referenced(policy, examples(4)), state=state)
    assert state.optimizer == {}


def test_local_steps_go_on_through_the_data_and_reshuffle_false_replays_its_start(policy):
    pairs = referenced(policy, examples(10))
    for reshuffle, expected in ((True, 10), (False, 4)):
        seen = set()  # a pair is known by its reference log-probabilities

        def loss(policy_logps, reference, seen=seen):
            seen |= set(reference.chosen.tolist())
            return dpo_loss(policy_logps, reference)

        state = ClientState()
        for _ in range(5):
            train(policy, pairs, state=state, loss=loss, local_steps=1, batch_size=4, reshuffle=reshuffle)
        assert len(seen) == expected
        assert state.updates == 5


def test_counters_and_the_original_tags_are_told_at_every_update(policy):
    state = ClientState()
    _, told = train(policy, referenced(policy, examples(6)), state=state, batch_size=4)
    assert [(split, step) for split, _, step in told] == [("train", 1), ("train", 2)]
    assert told[-1][1].keys() >= {
        "loss/train", "rewards_train/chosen", "rewards_train/rejected", "rewards_train/accuracies",
        "rewards_train/margins", "logps_train/chosen", "logps_train/rejected", "grad_norm", "counters/examples",
        "counters/updates",
    }  # fmt: skip
    assert (told[-1][1]["counters/examples"], told[-1][1]["counters/updates"]) == (6, 2)
    assert (state.examples, state.updates, state.batches) == (6, 2, 2)


def test_evaluations_come_each_time_the_examples_ever_seen_pass_a_multiple_of_eval_every(policy):
    """Steps of 4, 4 and the 2 that are left, one a round: 4, 8, 10 examples; only the second passes 6."""
    pairs, held_out = referenced(policy, examples(10)), referenced(policy, examples(4, seed=1))
    state, evaluated = ClientState(), []
    for _ in range(3):
        _, told = train(policy, pairs, state=state, held_out=held_out, local_steps=1, batch_size=4, eval_every=6)
        evaluated += [step for split, _, step in told if split == "eval"]
    assert evaluated == [2]


def test_supervised_training_needs_no_reference_and_lowers_the_loss_of_chosen_responses(policy):
    pairs = examples(32)
    first, _ = train(policy, pairs, loss=sft, supervised=True, local_epochs=1)
    later, _ = train(policy, pairs, loss=sft, supervised=True, local_epochs=6)
    assert later["loss"] < first["loss"]
    assert math.isfinite(later["grad_norm"])


def test_supervised_training_can_be_anchored_too(policy):
    _, told = train(policy, examples(8), loss=sft, supervised=True, alpha=1.0)
    assert told[0][1]["anchor/train"] == 0.0 < told[1][1]["anchor/train"]


def test_a_client_trains_alike_whoever_trained_before(policy):
    mine, other = referenced(policy, examples(8)), referenced(policy, examples(8, seed=5))
    alone, after = copied(policy), copied(policy)
    train(alone, mine, client_id=3)
    train(after, other, client_id=1)
    after.model.load_state_dict(policy.model.state_dict())
    train(after, mine, client_id=3)
    assert same(weights(alone), weights(after))
