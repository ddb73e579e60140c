"""The options by which commands name a judge, and the judge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from scripts.options import at_least, option
from scripts.servers import ServerOptions, check_server, more_of, server_of

if TYPE_CHECKING:
    from feedback.judging import Judge


@dataclass(frozen=True)
class JudgeOptions(ServerOptions):
    """The options that name a judge."""

    judge: str | None = option(
        None,
        "Who judges: a prompt of feedback/judge_prompts/ or a YAML file, which a served model answers; lexicon; "
        "policy:POLICY, by its implicit reward; reward_model:MODEL, by its scores.",
    )
    rule: str | None = option(
        None,
        'For lexicon: what each occurrence of a phrase adds, "{sorry: -1, per_word: -0.01}"; per_word is what each '
        "word adds.",
    )
    orders: str = option(
        "both",
        "For a served model: both, and what is judged otherwise in each is a tie; mean, of its probabilities in both; "
        "random; given.",
    )
    answers: str = option(
        "text",
        "For a served model: text, as the prompt says; json, enforced by the server; letters, by their probability; "
        "choice, by /v1/systemone of transformers serve.",
    )
    judge_seed: int = option(0, "Decides orders=random.")
    batch_size: int = option(16, "For a policy or reward model: responses at a time.")
    max_length: int | None = option(None, "For these: tokens of prompt and response; null: the run's, else 1024.")
    device: str | None = option(None, "For these: cpu, cuda, ...; null: cuda if there is one.")


def judge_of(options: JudgeOptions) -> Judge:
    """Return the judge that the options name.

    Raises:
        ValueError: If they name none, or one that cannot be asked.
    """
    from fed.distributed import launch
    from feedback import judges
    from feedback.judging import Orders
    from feedback.server_judge import Answers, judge_prompt

    if options.judge is None:
        raise ValueError(
            "judge= is missing; expected a prompt of feedback/judge_prompts/, lexicon, policy:POLICY or "
            "reward_model:MODEL, e.g. judge=helpful"
        )
    for name, value, known in (
        ("orders", options.orders, get_args(Orders)),
        ("answers", options.answers, get_args(Answers)),
    ):
        if value not in known:
            raise ValueError(f"{name}={value} is unknown; expected {', '.join(known)}")
    at_least(1, batch_size=options.batch_size)
    settings = judges.JudgeSettings(
        judge=options.judge,
        rule=options.rule,
        orders=options.orders,  # type: ignore[arg-type]
        answers=options.answers,  # type: ignore[arg-type]
        seed=options.judge_seed,
        max_length=options.max_length,
        batch_size=options.batch_size,
    )
    if settings.is_served:
        judge_prompt(options.judge)
        check_server(options)
        return judges.judge_of(replace(settings, server=server_of(options), more=more_of(options)))
    with launch.joined(options.device, 60) as device:
        return judges.judge_of(replace(settings, device=device))
