"""A bandit that shows when a strong teacher's answers teach more than AI feedback on a weak student's.

It is the synthetic experiment of arXiv 2402.12366. An arm stands for an answer, and its number is its true reward.

Shapes: A arms, N pairs or answers.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fed.seeding import generator
from feedback.winrates import Floats, logistic

Whole = NDArray[np.int64]
ARMS = 100
TRUE_REWARDS: Floats = np.arange(ARMS, dtype=np.float64)
WIDTH = 300.0  # of the bell curves of student and teacher; their standard deviation is sqrt(WIDTH / 2) = 12.2 arms


@dataclass(frozen=True)
class Setting:
    """The values on which the experiment depends.

    Attributes:
        student: The arm about which the student draws.
        teacher: The arm about which the teacher draws.
        pairs: How many pairs of the student's draws are judged, and how many answers the teacher gives.
        steps: Steps of gradient descent that fit the reward.
        sft_steps: Steps of gradient descent that fit the SFT policy.
        lr: The learning rate of both fits.
        beta: How strongly the student holds RLAIF's policy.
        seed: All draws depend on it.
    """

    student: float
    teacher: float
    pairs: int
    steps: int
    sft_steps: int
    lr: float
    beta: float
    seed: int


@dataclass(frozen=True)
class Outcome:
    """The policies at the end, and the learned reward, each of shape (A,)."""

    student: Floats
    rlaif: Floats
    sft: Floats
    teacher: Floats
    rewards: Floats


def outcome_of(setting: Setting) -> Outcome:
    """Return the result of the experiment: RLAIF from the student's own pairs, and SFT on the teacher's answers."""
    student, teacher = around(setting.student), around(setting.teacher)
    drawn = generator(setting.seed, "bandit pairs").choice(ARMS, size=(setting.pairs, 2), p=student)
    rewards = fitted_rewards(preferences(drawn), setting.steps, setting.lr)
    answers = generator(setting.seed, "bandit answers").choice(ARMS, size=setting.pairs, p=teacher)
    sft = imitated(np.bincount(answers, minlength=ARMS), setting.sft_steps, setting.lr)
    return Outcome(student, optimised(student, rewards, setting.beta), sft, teacher, rewards)


def around(centre: float) -> Floats:
    """Return the policy exp(-(arm - centre)^2 / 300), normalised, (A,)."""
    return softmax(-((TRUE_REWARDS - centre) ** 2) / WIDTH)


def mean_reward(policy: Floats) -> float:
    """Return the mean true reward of the arms that a policy draws."""
    return float(policy @ TRUE_REWARDS)


def preferences(drawn: Whole) -> Floats:
    """Count the pairs in which one arm is preferred to another; the judge is never wrong.

    Args:
        drawn: The pairs, (N, 2).

    Returns:
        At [i, j] the number of pairs of i and j, where i has the larger true reward, (A, A). Pairs of equal arms stand
        on the diagonal.
    """
    better, worse = drawn.max(axis=1), drawn.min(axis=1)  # an arm's number is its reward
    return np.bincount(better * ARMS + worse, minlength=ARMS * ARMS).reshape(ARMS, ARMS).astype(np.float64)


def reward_gradient(rewards: Floats, preferred: Floats) -> Floats:
    """Return the gradient of the Bradley-Terry loss, the mean of -log sigmoid(r_better - r_worse) over pairs, (A,).

    All pairs of the same two arms have the same loss, so that their counts take the place of the pairs. A pair of equal
    arms has the loss log 2 whatever their reward: it has no gradient, but it counts in the mean, as in the published
    code.

    Args:
        rewards: The reward of each arm, (A,).
        preferred: The counts that `preferences` returns, (A, A).
    """
    mistaken = preferred * logistic(rewards[None, :] - rewards[:, None])
    gradient: Floats = (mistaken.sum(axis=0) - mistaken.sum(axis=1)) / preferred.sum()
    return gradient


def fitted_rewards(preferred: Floats, steps: int, lr: float) -> Floats:
    """Return the rewards after so many steps of gradient descent from zero, (A,)."""
    rewards = np.zeros(ARMS)
    for _ in range(steps):
        rewards -= lr * reward_gradient(rewards, preferred)
    return rewards


def imitated(answers: Whole, steps: int, lr: float) -> Floats:
    """Return the policy that gradient descent on the mean of -log p(answer) makes of the uniform one, (A,).

    Args:
        answers: How often each arm was answered, (A,).
        steps: So many steps are taken, each with all answers.
        lr: The learning rate of the policy's logits.
    """
    shares, logits = answers / answers.sum(), np.zeros(ARMS)
    for _ in range(steps):
        logits -= lr * (softmax(logits) - shares)
    return softmax(logits)


def softmax(logits: Floats) -> Floats:
    """Return exp(logits), normalised, (A,)."""
    powers = np.exp(logits - logits.max())
    found: Floats = powers / powers.sum()
    return found


def optimised(reference: Floats, rewards: Floats, beta: float) -> Floats:
    """Return reference * exp(rewards / beta), normalised, (A,).

    It is the policy with the largest mean reward minus beta times its KL divergence from the reference (arXiv
    2305.18290, equation 4).
    """
    # The largest reward becomes 0: however small beta is, the others become -inf at the worst.
    with np.errstate(over="ignore"):
        return softmax(np.log(reference) + (rewards - rewards.max()) / beta)


def share_from(policy: Floats, reward: float) -> float:
    """Return the share of a policy's draws that have at least this true reward."""
    return float(policy[reward <= TRUE_REWARDS].sum())
