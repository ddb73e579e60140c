"""The judge that settings name: a rule, a policy, or a served model with a prompt."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from feedback.api import Client, Server
from feedback.asking import Wanted
from feedback.implicit_reward import ImplicitReward
from feedback.judging import Judge, Orders, ScoreJudge
from feedback.policies import Loading, find
from feedback.reward_model import RewardModel
from feedback.rules import Lexicon
from feedback.server_judge import Answers, ServerJudge, judge_prompt

LEXICON, POLICY, REWARD = "lexicon", "policy:", "reward_model:"


@dataclass(frozen=True)
class JudgeSettings:
    """The settings that name a judge; each field is read for one kind of judge only.

    Attributes:
        judge: "lexicon", "policy:POLICY", "reward_model:MODEL", or a prompt of feedback/judge_prompts/ or a YAML file
            for a served model.
        rule: The rule of the judge lexicon.
        server: The served model.
        orders: The orders in which a served model sees a pair, and what they make of it.
        answers: How a served model answers.
        seed: Decides orders that are drawn.
        more: More arguments of each call to a served model.
        device: Where a policy or reward model computes.
        max_length: Tokens of a prompt and response that such a model reads; None: as its run had it.
        batch_size: Responses that such a model reads at a time.
    """

    judge: str
    rule: str | None = None
    server: Server | None = None
    orders: Orders = "both"
    answers: Answers = "text"
    seed: int = 0
    more: Mapping[str, Any] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    max_length: int | None = None
    batch_size: int = 16

    @property
    def is_served(self) -> bool:
        """True if a served model judges."""
        return self.judge != LEXICON and not self.judge.startswith((POLICY, REWARD))


def check_unserved(judge: str, given: Mapping[str, Any], default: Any, prefix: str = "") -> None:
    """Refuse options of a served model with a judge that asks no server.

    Args:
        judge: As it was typed.
        given: The options by name.
        default: Has the value of each that stands for none.
        prefix: Stands before the options' names where they are typed.

    Raises:
        ValueError: Naming the option.
    """
    for name, value in given.items():
        if value != getattr(default, name):
            raise ValueError(
                f"{prefix}{name}={value} has no effect with {prefix}judge={judge}, which asks no server; leave it out"
            )


def judge_of(settings: JudgeSettings) -> Judge:
    """Return the judge.

    Raises:
        ValueError: If there is no such judge, or something that it needs is missing.
    """
    if settings.rule is not None and settings.judge != LEXICON:
        raise ValueError("a rule has no effect on another judge than lexicon; leave it out")
    if settings.judge == LEXICON:
        if settings.rule is None:
            raise ValueError('the judge lexicon needs a rule, e.g. rule="{sorry: -1}"')
        rule = Lexicon.read(settings.rule)
        return ScoreJudge(LEXICON, rule.score, rule.about)
    if settings.judge.startswith((POLICY, REWARD)):
        return _of_model(settings)
    prompt = judge_prompt(settings.judge)
    if settings.server is None:
        raise ValueError(f"the judge {prompt.name} is a served model's; name it with model= and base_url=")
    client, model = Client(settings.server), settings.server.model
    return ServerJudge(client, prompt, model, settings.answers, settings.orders, settings.seed, settings.more)


def _of_model(settings: JudgeSettings) -> Judge:
    """Return a policy as a judge, or a reward model.

    Raises:
        ValueError: If there is no such model.
    """
    kind, _, name = settings.judge.partition(":")
    found = find(name)
    how = found, Loading(settings.device, None, found.longest(settings.max_length)), Wanted(), settings.batch_size
    if f"{kind}:" == REWARD:
        scorer = RewardModel(*how)
        return ScoreJudge(f"reward model {name}", scorer.score, scorer.about)
    reward = ImplicitReward(*how)
    return ScoreJudge(f"implicit reward of {name}", reward.score, reward.about)
