import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import RecordDict
from torch import nn

from clients.state import ClientState, read_state, write_state
from fed.data.collate import collate
from fed.data.order import BatchOrder
from fed.model.policy import Policy, response_logps
from losses.sft import sft
from support.federations import dpo_loss
from support.pairs import examples
from support.training import copied, referenced, same, train, weights


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


@pytest.mark.parametrize(
    ("warm_up", "second_round"),
    [
        ({"warmup_steps": 3, "warmup_restarts": False}, [0.75, 1.0]),
        ({"warmup_ratio": 0.5}, [0.5, 1.0]),  # one of two steps
        ({"warmup_ratio": 0.0}, [1.0, 1.0]),
    ],
)
def test_warm_up_counts_over_rounds_or_is_a_share_of_a_round(
    policy: Policy, warm_up: dict[str, Any], second_round: list[float]
) -> None:
    pairs, state = referenced(policy, examples(8)), ClientState()
    for _ in range(2):
        _, told = train(policy, pairs, state=state, lr=1.0, batch_size=4, client_optimizer="reset", **warm_up)
    assert [tags["lr"] for _, tags, _ in told] == second_round


def test_pairs_that_tie_are_counted_and_are_no_errors_on_tensorboard(policy: Policy) -> None:
    """Pairs of one response tie whatever the policy; a step of nothing else has no accuracy to show."""
    pairs = examples(8)
    tied = referenced(policy, [replace(pair, rejected=pair.chosen) for pair in pairs[:4]])
    metrics, told = train(policy, tied, batch_size=4)
    assert (metrics["ties"], metrics["accuracy"], metrics["examples"]) == (1.0, 0.0, 4)
    ((_, tags, _),) = told
    assert tags["rewards_train/ties"] == 1.0 and "rewards_train/accuracies" not in tags
    apart = [replace(pair, reference=(0.0, 1e6)) for pair in pairs[4:]]  # the policy is sure to rank them rightly
    metrics, told = train(policy, [*tied, *apart], batch_size=8)
    ((_, tags, _),) = told
    assert (metrics["ties"], metrics["accuracy"], metrics["examples"]) == (0.5, 0.5, 8)
    assert tags["rewards_train/accuracies"] == 1.0


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


def test_a_client_trains_alike_whoever_trained_before(policy):
    mine, other = referenced(policy, examples(8)), referenced(policy, examples(8, seed=5))
    alone, after = copied(policy), copied(policy)
    train(alone, mine, client_id=3)
    train(after, other, client_id=1)
    after.model.load_state_dict(policy.model.state_dict())
    train(after, mine, client_id=3)
    assert same(weights(alone), weights(after))
