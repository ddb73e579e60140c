"""Evaluation of a policy on held-out pairs: accuracy with its interval, margin, loss, rewards. Shapes: B pairs."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fed.data.examples import Example, are_pairs
from fed.intervals import wilson
from fed.model.policy import Policy, pair_logps
from losses.logps import Logps

Loss = Callable[[Logps, Logps | None], Tensor]
Metrics = dict[str, float]


class Evaluation(NamedTuple):
    """The result of an evaluation."""

    metrics: Metrics
    margins: list[float]  # reward(chosen) - reward(rejected) of each pair, in order


T = TypeVar("T")
OF_LOG_PROBS = ("log_ratio", "logps_chosen", "logps_rejected")  # what scores do not have


def of_scores(metrics: Mapping[str, T]) -> dict[str, T]:
    """Return the metrics that a reward model has: all but those of log-probs."""
    return {name: value for name, value in metrics.items() if name not in OF_LOG_PROBS}


def evaluate(policy: Policy, examples: Sequence[Example], *, loss: Loss, beta: float, batch_size: int) -> Metrics:
    """Return the metrics of `evaluate_pairs`."""
    return evaluate_pairs(policy, examples, loss=loss, beta=beta, batch_size=batch_size).metrics


def evaluate_pairs(
    policy: Policy, examples: Sequence[Example], *, loss: Loss, beta: float, batch_size: int
) -> Evaluation:
    """Evaluate the policy as it is now on all examples; every pair counts alike.

    Every example needs its reference column. `beta` scales rewards only. See `pair_metrics`, and `response_metrics` for
    examples of which some have no response to avoid; the margins are then rewards of the chosen ones.
    """
    paired = are_pairs(examples)
    logps = pair_logps(policy, examples, batch_size=batch_size, paired=paired)
    policy_logps = as_tensors(examples, [pair.chosen for pair in logps], [pair.rejected for pair in logps])
    reference = as_tensors(
        examples,
        [example.reference.chosen for example in examples if example.reference is not None],
        [example.reference.rejected for example in examples if example.reference is not None],
    )
    losses = loss(policy_logps, reference)
    mean_loss = {"loss": float(losses.mean())}
    if not paired:
        gains = policy_logps.chosen - reference.chosen
        return Evaluation({**response_metrics(policy_logps, gains, beta=beta), **mean_loss}, (beta * gains).tolist())
    chosen, rejected = _gains(policy_logps, reference)
    metrics = {**pair_metrics(policy_logps, reference, beta=beta), **mean_loss}
    if policy.scores:
        metrics = of_scores(metrics)
    return Evaluation(metrics, (beta * (chosen - rejected)).tolist())


def response_metrics(policy: Logps, gains: Tensor, *, beta: float) -> Metrics:
    """Compute the means of `pair_metrics` that need no response to avoid; there is no accuracy.

    Args:
        policy: The policy's log-probs.
        gains: Its log-probs of the chosen responses minus the reference's, (B,).
        beta: Scales rewards.

    `loss_per_token`: mean of -log p_policy over the tokens of all chosen responses, in nats; exp of it is perplexity.
    """
    assert policy.chosen_tokens is not None
    return {
        "log_ratio": 0.0 - float(gains.mean()),
        "reward_chosen": beta * float(gains.mean()),
        "logps_chosen": float(policy.chosen.mean()),
        "examples": len(gains),
        "loss_per_token": -float(policy.chosen.sum() / policy.chosen_tokens.sum()),
    }


def pair_metrics(policy: Logps, reference: Logps, *, beta: float) -> Metrics:
    """Compute means over pairs, with reward(y) = beta (log p_policy(y|x) - log p_reference(y|x)).

    `accuracy`: share of pairs with reward(chosen) > reward(rejected); `ties`, a share too, count as wrong.
    `accuracy_low`, `accuracy_high`: ends of its 95 % interval by Wilson. `margin`: reward(chosen) - reward(rejected).
    `log_ratio`: log(p_reference(y|x) / p_policy(y|x)) of a held-out response, in nats. It would estimate
    KL(reference || policy) if the reference had written the responses; it has not, so the mean can be far below 0.
    """
    assert policy.rejected is not None
    chosen, rejected = _gains(policy, reference)
    accuracy = float((chosen > rejected).double().mean())
    low, high = wilson(accuracy, len(chosen))
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "ties": float((chosen == rejected).double().mean()),
        "margin": beta * float((chosen - rejected).mean()),
        "log_ratio": (0.0 - float((chosen + rejected).mean())) / 2,  # 0.0 - x: an untrained policy's is 0, not -0
        "reward_chosen": beta * float(chosen.mean()),
        "reward_rejected": beta * float(rejected.mean()),
        "logps_chosen": float(policy.chosen.mean()),
        "logps_rejected": float(policy.rejected.mean()),
        "examples": len(chosen),
    }


def _gains(policy: Logps, reference: Logps) -> tuple[Tensor, Tensor]:
    """Return policy minus reference log-probs of chosen and of rejected responses, each (B,)."""
    assert policy.rejected is not None and reference.rejected is not None
    return policy.chosen - reference.chosen, policy.rejected - reference.rejected


def as_tensors(examples: Sequence[Example], chosen: list[float], rejected: list[float]) -> Logps:
    """Return the columns of these examples' log-probs in float64, so that means over thousands of pairs lose nothing.

    Raises:
        ValueError: If a column does not cover all examples.
    """
    if not len(chosen) == len(rejected) == len(examples) > 0:
        raise ValueError(f"evaluation needs pairs with log-probs; {len(chosen)} of {len(examples)} pairs have them")
    double = torch.float64
    return Logps(
        torch.tensor(chosen, dtype=double),
        torch.tensor(rejected, dtype=double),
        torch.tensor([len(example.chosen) for example in examples], dtype=double),
        torch.tensor([len(example.rejected) for example in examples], dtype=double),
    )
