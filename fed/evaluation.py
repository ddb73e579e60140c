"""How well a policy ranks held-out pairs: accuracy with standard error, margin, loss, rewards. Shapes: B pairs."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fed.batches import Example
from fed.policy import Policy, pair_logps
from losses.logps import Logps

Loss = Callable[[Logps, Logps | None], Tensor]
Metrics = dict[str, float]


def evaluate(policy: Policy, examples: Sequence[Example], *, loss: Loss, beta: float, batch_size: int) -> Metrics:
    """Metrics of the policy as it is now over all examples, each pair counting alike; see `pair_metrics`.

    Every example needs its reference column. `beta` scales rewards only.
    """
    logps = pair_logps(policy, examples, batch_size=batch_size)
    policy_logps = _as_tensors(examples, [pair.chosen for pair in logps], [pair.rejected for pair in logps])
    reference = _as_tensors(
        examples,
        [example.reference.chosen for example in examples if example.reference is not None],
        [example.reference.rejected for example in examples if example.reference is not None],
    )
    losses = loss(policy_logps, reference)
    return {**pair_metrics(policy_logps, reference, beta=beta), "loss": float(losses.mean())}


def pair_metrics(policy: Logps, reference: Logps, *, beta: float) -> Metrics:
    """Means over pairs. reward(y) = beta (log p_policy(y|x) - log p_reference(y|x)).

    `accuracy`: share of pairs with reward(chosen) > reward(rejected); `ties` count as wrong. `accuracy_se`: its
    standard error, sqrt(a (1 - a) / B). `margin`: reward(chosen) - reward(rejected). `kl`: reference minus policy
    log-prob of a response, in nats: an estimate of KL(reference || policy) that takes the held-out responses for draws
    from the reference.
    """
    assert policy.rejected is not None and reference.rejected is not None
    chosen = policy.chosen - reference.chosen
    rejected = policy.rejected - reference.rejected
    accuracy = float((chosen > rejected).double().mean())
    return {
        "accuracy": accuracy,
        "accuracy_se": math.sqrt(accuracy * (1 - accuracy) / len(chosen)),
        "ties": float((chosen == rejected).double().mean()),
        "margin": beta * float((chosen - rejected).mean()),
        "kl": (0.0 - float((chosen + rejected).mean())) / 2,  # 0.0 - x: an untrained policy's is 0, not -0
        "reward_chosen": beta * float(chosen.mean()),
        "reward_rejected": beta * float(rejected.mean()),
        "logps_chosen": float(policy.chosen.mean()),
        "logps_rejected": float(policy.rejected.mean()),
        "examples": len(chosen),
    }


def _as_tensors(examples: Sequence[Example], chosen: list[float], rejected: list[float]) -> Logps:
    """Float64, so that means over thousands of pairs lose nothing.

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
