"""The options by which commands name a judge, and the judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from scripts.options import at_least, option
from scripts.servers import ServerOptions, check_server, client_of, more_of

if TYPE_CHECKING:
    from feedback.judging import Judge

LEXICON, POLICY, REWARD_MODEL = "lexicon", "policy:", "reward_model:"


@dataclass(frozen=True)
class JudgeOptions(ServerOptions):
    """The options that name a judge."""

    judge: str | None = option(
        None,
        "Who judges: a prompt of config/judge/ or a YAML file, which a served model answers; lexicon; "
        "policy:POLICY, by its implicit reward.",
    )
    rule: str | None = option(
        None,
        'For lexicon: what each occurrence of a phrase adds, "{sorry: -1, per_word: -0.01}"; per_word is what each '
        "word adds.",
    )
    orders: str = option(
        "both", "For a served model: both, and what is judged otherwise in each is a tie; random; given."
    )
    answers: str = option(
        "text",
        "For a served model: text, as the prompt says; json, enforced by the server; letters, by their probability; "
        "choice, by /v1/systemone of transformers serve.",
    )
    judge_seed: int = option(0, "Decides orders=random.")
    batch_size: int = option(16, "For policy: responses at a time.")
    max_length: int | None = option(None, "For policy: tokens of prompt and response; null: the run's, else 1024.")
    device: str | None = option(None, "For policy: cpu, cuda, ...; null: cuda if there is one.")


def judge_of(options: JudgeOptions) -> Judge:
    """Return the judge that the options name.

    Raises:
        ValueError: If they name none, or one that cannot be asked.
    """
    name = options.judge
    if name is None:
        raise ValueError(
            "judge= is missing; expected a prompt of config/judge/, lexicon or policy:POLICY, e.g. judge=helpful"
        )
    if options.rule is not None and name != LEXICON:
        raise ValueError("rule= has no effect without judge=lexicon")
    if name == LEXICON:
        return _lexicon(options)
    if name.startswith(POLICY):
        return _policy(options, name.removeprefix(POLICY))
    return _served(options, name)


def _lexicon(options: JudgeOptions) -> Judge:
    from feedback.judging import ScoreJudge
    from feedback.rules import Lexicon

    if options.rule is None:
        raise ValueError('judge=lexicon needs rule=, e.g. rule="{sorry: -1}"')
    rule = Lexicon.read(options.rule)
    return ScoreJudge("lexicon", rule.score, rule.about)


def _policy(options: JudgeOptions, name: str) -> Judge:
    from fed.distributed import launch
    from feedback.asking import Wanted
    from feedback.implicit_reward import ImplicitReward
    from feedback.judging import ScoreJudge
    from feedback.policies import Loading, find

    at_least(1, batch_size=options.batch_size)
    found = find(name)
    longest = options.max_length or (found.config.max_length if found.config else 1024)
    with launch.joined(options.device, 60) as device:
        reward = ImplicitReward(found, Loading(device, None, longest), Wanted(), options.batch_size)
    return ScoreJudge(f"implicit reward of {name}", reward.score, reward.about)


def _served(options: JudgeOptions, name: str) -> Judge:
    from feedback.server_judge import ServerJudge, judge_prompt

    for option_name, value, known in (
        ("orders", options.orders, ("both", "random", "given")),
        ("answers", options.answers, ("text", "json", "letters", "choice")),
    ):
        if value not in known:
            raise ValueError(f"{option_name}={value} is unknown; expected {', '.join(known)}")
    prompt = judge_prompt(name)
    check_server(options)
    return ServerJudge(
        client_of(options),
        prompt,
        str(options.model),
        options.answers,  # type: ignore[arg-type]
        options.orders,  # type: ignore[arg-type]
        options.judge_seed,
        more_of(options),
    )
