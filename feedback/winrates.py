"""Win rates from judgements: plain, length-controlled, and the strengths of several models.

Shapes: N judgements, C columns of a regression, M models.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fed.intervals import NORMAL, wilson

Floats = NDArray[np.float64]
VALUES = {"a": 1.0, "b": 0.0, "tie": 0.5}  # what a judgement counts for a
RIDGE, LEAST_RIDGE = 1.0, 1e-6  # of each prompt's own term; of others, whose weights could else be infinite
STEPS, PRECISION = 100, 1e-10


class Battle(NamedTuple):
    """One judgement as win rates see it."""

    prompt: Hashable
    a: str  # the names of the two models
    b: str
    value: float  # 1: a won, 0: b won, 0.5: a tie
    longer: float  # characters of a's response minus those of b's


@dataclass(frozen=True)
class Rate:
    """A share with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def battles(lines: Iterable[Mapping[str, Any]]) -> list[Battle]:
    """Return the judgements of records that scripts.judge wrote; those without a winner are left out."""
    return [
        Battle(
            _key(line["prompt"]),
            str(line.get("generator_a") or "a"),
            str(line.get("generator_b") or "b"),
            VALUES[line["winner"]],
            float(len(line["response_a"]) - len(line["response_b"])),
        )
        for line in lines
        if line["winner"] in VALUES
    ]


def _key(prompt: Any) -> Hashable:
    return prompt if isinstance(prompt, str) else tuple((turn["role"], turn["content"]) for turn in prompt)


def turned(found: Battle) -> Battle:
    """Return the same judgement with b as the first."""
    return Battle(found.prompt, found.b, found.a, 1 - found.value, -found.longer)


def win_rate(found: Sequence[Battle]) -> Rate:
    """Return how often a wins, a tie counting half; the interval is Wilson's, with prompts as its independent units.

    Ties make it wider than it need be.
    """
    mean = fmean(battle.value for battle in found)
    return Rate(mean, *wilson(mean, len({battle.prompt for battle in found})))


def as_metrics(plain: Rate, controlled: Rate) -> dict[str, float]:
    """Return a plain and a length-controlled rate by the names that metrics have."""
    return {
        "win_rate": plain.value,
        "win_rate_low": plain.low,
        "win_rate_high": plain.high,
        "length_controlled": controlled.value,
        "length_controlled_low": controlled.low,
        "length_controlled_high": controlled.high,
    }


def standard_error(found: Sequence[Battle]) -> float:
    """Return the standard error of the win rate as AlpacaEval computes it: of the mean over judgements."""
    values = np.array([battle.value for battle in found])
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def length_term(longer: Floats, spread: float) -> Floats:
    """Return tanh of the differences in length over their standard deviation, (N,)."""
    return np.tanh(longer / spread) if spread > 0 else np.zeros_like(longer)


def length_controlled(found: Sequence[Battle]) -> Rate:
    """Return how often a would win if both responses were equally long.

    A logistic regression of the judgements (a tie is half a win) on a constant, on tanh(difference in length / its
    standard deviation), and on a term for each prompt that is judged more than once, these drawn to 0 by a ridge; the
    rate is its mean with the length term at 0. AlpacaEval takes the prompts' terms from a file that many models fitted
    (arXiv 2404.04475, equation 2); here they are fitted to the judgements at hand.

    The interval is by the delta method, with prompts as the independent units. Where all judgements are the same,
    length explains nothing, and rate and interval are the plain ones.
    """
    if len({battle.value for battle in found}) == 1:
        return win_rate(found)
    longer = np.array([battle.longer for battle in found])
    values = np.array([battle.value for battle in found])
    _, owners = np.unique([str(battle.prompt) for battle in found], return_inverse=True)
    often = np.bincount(owners) > 1
    own = np.zeros((len(found), int(often.sum())))
    place = np.cumsum(often) - 1
    for row, owner in enumerate(owners):
        if often[owner]:
            own[row, place[owner]] = 1.0
    design = np.column_stack([np.ones(len(found)), length_term(longer, float(longer.std())), own])
    ridge = np.array([LEAST_RIDGE, LEAST_RIDGE, *[RIDGE] * own.shape[1]])
    weights = fitted(design, values, ridge)
    equal = design.copy()
    equal[:, 1] = 0.0
    rates = logistic(equal @ weights)
    return _with_interval(design, values, ridge, weights, equal, rates, owners)


def fitted(design: Floats, values: Floats, ridge: Floats, counts: Floats | None = None) -> Floats:
    """Return the weights of a logistic regression by Newton's method, (C,).

    Args:
        design: The columns, (N, C).
        values: From 0 to 1, (N,).
        ridge: Half of its product with the squared weights is added to the loss, (C,).
        counts: How often each row counts, (N,); None: once.
    """
    counts = np.ones(len(values)) if counts is None else counts
    weights = np.zeros(design.shape[1])
    for _ in range(STEPS):
        rates = logistic(design @ weights)
        gradient = design.T @ (counts * (rates - values)) + ridge * weights
        curvature = (design * (counts * rates * (1 - rates))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step / max(1.0, float(np.abs(step).max()))
        if float(np.abs(step).max()) < PRECISION:
            break
    return weights


def logistic(values: Floats) -> Floats:
    """Return 1 / (1 + e^-x) of each value."""
    found: Floats = 0.5 * (1.0 + np.tanh(values / 2))
    return found


def _with_interval(
    design: Floats, values: Floats, ridge: Floats, weights: Floats, equal: Floats, rates: Floats, owners: Any
) -> Rate:
    """Return the mean rate with its interval: the sandwich of the regression, and the spread of rates over prompts."""
    fit = logistic(design @ weights)
    curvature = (design * (fit * (1 - fit))[:, None]).T @ design + np.diag(ridge)
    slope = (equal * (rates * (1 - rates))[:, None]).mean(0)
    influence = (values - fit)[:, None] * (design @ np.linalg.solve(curvature, slope))[:, None] * len(values)
    each = influence[:, 0] + rates - rates.mean()
    sums = np.bincount(owners, weights=each)
    error = math.sqrt(float((sums**2).sum())) / len(values)
    mean = float(rates.mean())
    return Rate(mean, max(mean - NORMAL * error, 0.0), min(mean + NORMAL * error, 1.0))


def _decides(found: Sequence[Battle]) -> bool:
    """Return True if from each model a chain of wins and ties leads to every other."""
    beaten: dict[str, set[str]] = {}
    for battle in found:
        for one, other, value in ((battle.a, battle.b, battle.value), (battle.b, battle.a, 1 - battle.value)):
            beaten.setdefault(one, set()).update({other} if value > 0 else ())
    for model in beaten:
        reached, left = {model}, [model]
        while left:
            new = beaten[left.pop()] - reached
            reached |= new
            left += new
        if reached != beaten.keys():
            return False
    return True


def strengths(found: Sequence[Battle]) -> dict[str, float]:
    """Return the Bradley-Terry strength of each model, with mean 1 over the models, strongest first.

    {} if the judgements do not decide them: however the models are divided in two, some of each part must have won
    against some of the other, or tied.

    Raises:
        ValueError: If the package evalica is not installed.
    """
    if not _decides(found):
        return {}
    try:
        import evalica
    except ImportError as error:
        raise ValueError("the strengths of several models need evalica: pip install -e '.[feedback]'") from error
    winners = {1.0: evalica.Winner.X, 0.0: evalica.Winner.Y, 0.5: evalica.Winner.Draw}
    result = evalica.bradley_terry(
        [battle.a for battle in found], [battle.b for battle in found], [winners[battle.value] for battle in found]
    )
    scores = {str(name): float(score) for name, score in result.scores.items()}
    mean = sum(scores.values()) / len(scores)
    return dict(sorted(((name, score / mean) for name, score in scores.items()), key=lambda item: -item[1]))
