"""The options by which commands name a judge, and the judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        "random, one drawn from the prompt; given, the first response first.",
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
    from fed.cpu.runtime import set_up
    from fed.distributed import launch
    from feedback import judges
    from feedback.judging import Orders
    from feedback.server_judge import Answers, judge_prompt

    if options.judge is None:
        raise ValueError(
            "judge= is missing; expected a prompt of feedback/judge_prompts/, lexicon, policy:POLICY or "
            "reward_model:MODEL, e.g. judge=helpful"
        )
    _check(options, {"orders": get_args(Orders), "answers": get_args(Answers)})
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
    names = ("model", "base_url", "extra_body", "answers", "orders")
    judges.check_unserved(options.judge, {name: getattr(options, name) for name in names}, JudgeOptions())
    set_up(None, keep_freed=True)
    with launch.joined(options.device, 60) as device:
        return judges.judge_of(replace(settings, device=device))


def _check(options: JudgeOptions, known: Mapping[str, Sequence[str]]) -> None:
    """Check words and numbers.

    Raises:
        ValueError: If one cannot work.
    """
    for name, words in known.items():
        if (value := getattr(options, name)) not in words:
            raise ValueError(f"{name}={value} is unknown; expected {', '.join(words)}")
    at_least(1, batch_size=options.batch_size)
    at_least(2, max_length=options.max_length)
