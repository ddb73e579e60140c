"""Pairs of responses and their judgement: who is asked, in which order, and what the answers make of a pair.

The first response of a pair is a, the second b, whatever order a judge sees them in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

from fed.data.rows import HUMAN, Chat, Preference, Turn
from fed.seeding import generator

Side = Literal["a", "b", "tie"]
Order = Literal["ab", "ba"]
Orders = Literal["both", "mean", "random", "given"]
OnJudged = Callable[[int, "Judgement"], None]  # called with the number of a pair, in the order of the judgements


class Pair(NamedTuple):
    """Two responses to one prompt."""

    row: Preference  # its prompt counts
    a: str
    b: str


@dataclass(frozen=True)
class Opinion:
    """The answer of a judge to one order of a pair.

    Attributes:
        order: "ab": a stood first.
        winner: The better response, or a tie; None if the answer could not be read.
        raw: The answer as it was given, or the scores behind it.
        share: The probability that a is better, where the judge gives one.
    """

    order: Order
    winner: Side | None
    raw: str
    share: float | None = None


@dataclass(frozen=True)
class Judgement:
    """The judgement of one pair.

    Attributes:
        winner: The better response; "tie" also if a judge prefers whatever stands in one place; None: there is none.
        opinions: The answers behind it.
        problem: Why there is no judgement; "" if there is one.
    """

    winner: Side | None
    opinions: Sequence[Opinion] = ()
    problem: str = ""

    @property
    def share(self) -> float | None:
        """The mean probability that a is better, where the judge gives one for each order."""
        known = [opinion.share for opinion in self.opinions if opinion.share is not None]
        return sum(known) / len(known) if known and len(known) == len(self.opinions) else None


class Judge(Protocol):
    """Whoever judges pairs."""

    @property
    def name(self) -> str:
        """The name that stands beside each judgement."""

    @property
    def about(self) -> Mapping[str, Any]:
        """The settings that decide the judgements, for the file of a job."""

    def judge(self, pairs: Sequence[Pair], on_judged: OnJudged) -> None:
        """Judge all pairs, and call `on_judged` with each judgement as it is there.

        Raises:
            CannotContinue: If the judge cannot be asked any more.
        """


def by_mean(opinions: Sequence[Opinion]) -> Judgement:
    """Return what the mean probability over both orders says, in which a preference for a place cancels out.

    It is the balanced position calibration of arXiv 2305.17926.
    """
    share = Judgement(None, opinions).share
    if share is None:
        return Judgement(None, opinions, "an answer without probabilities")
    return Judgement("tie" if share == 0.5 else "a" if share > 0.5 else "b", opinions)


def agreed(opinions: Sequence[Opinion]) -> Judgement:
    """Return what opinions on both orders of a pair, or on one, make of it: they agree, or it is a tie."""
    if any(opinion.winner is None for opinion in opinions):
        return Judgement(None, opinions, "an answer that is no judgement")
    winners = {opinion.winner for opinion in opinions}
    return Judgement(winners.pop() if len(winners) == 1 else "tie", opinions)


def orders_of(pair: Pair, orders: Orders, seed: int) -> Sequence[Order]:
    """Return the orders in which a pair is shown: both, one drawn from the prompt, or that of the data."""
    if orders in ("both", "mean"):
        return ("ab", "ba")
    if orders == "given":
        return ("ab",)
    text = as_text(pair.row.prompt)
    return ("ab",) if generator(seed, f"order of {text}").random() < 0.5 else ("ba",)


def mirrored(side: Side | None) -> Side | None:
    """Return the other side; a tie stays one."""
    return {"a": "b", "b": "a"}.get(side, side) if side is not None else None  # type: ignore[return-value]


def as_text(prompt: str | Chat) -> str:
    """Return a prompt for a judge to read: a single question as it is, several turns behind their speakers."""
    if isinstance(prompt, str):
        _, mark, question = prompt.strip().rpartition(HUMAN.strip())
        is_single = mark and prompt.count(HUMAN.strip()) == 1
        return question.removesuffix("Assistant:").strip() if is_single else prompt.strip()
    if len(prompt.turns) == 1:
        return prompt.turns[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in prompt.turns)


def settled(a: str, b: str) -> Side | None:
    """Return what needs no judge: equal responses tie, and one that says nothing loses; None: a judge must say."""
    a, b = a.strip(), b.strip()
    if a == b:
        return "tie"
    return None if a and b else "a" if a else "b"


# Scores responses to prompts; the same response has the same score.
Score = Callable[[Sequence[Preference]], Sequence[float]]


@dataclass(frozen=True)
class ScoreJudge:
    """A judge that gives each response a score by itself, so that order plays no part.

    Attributes:
        name: The name that stands beside each judgement.
        score: Scores rows, of which each has a response as its chosen one.
        about: What decides the scores.
        batch: Pairs that are scored at a time.
    """

    name: str
    score: Score
    about: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 64

    def judge(self, pairs: Sequence[Pair], on_judged: OnJudged) -> None:
        """Judge all pairs; equal scores are a tie."""
        for start in range(0, len(pairs), self.batch):
            part = pairs[start : start + self.batch]
            both = [[response_row(pair.row, text) for text in (pair.a, pair.b)] for pair in part]
            different = list(dict.fromkeys(row for rows in both for row in rows))  # best of n meets each several times
            scores = dict(zip(different, self.score(different), strict=True))
            for place, (one, other) in enumerate(both, start=start):
                a, b = scores[one], scores[other]
                winner: Side | None = "tie" if a == b else "a" if a > b else "b" if a < b else None
                problem = "" if winner else "a score that is no number"
                on_judged(place, Judgement(winner, (Opinion("ab", winner, f"{a:.6g} {b:.6g}"),), problem))


def response_row(row: Preference, text: str) -> Preference:
    """Return the row with this response as its chosen one, and none to avoid."""
    return replace(row, chosen=Turn("assistant", text) if isinstance(row.prompt, Chat) else text, rejected=None)
