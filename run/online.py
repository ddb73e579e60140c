"""Online federated DPO: the judge of a run, the fresh pairs of its clients and the win rate of its policy."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord

from clients.fresh import FreshPairs
from clients.winrate import ClientWinRate
from fed.config.online import OnlineSettings
from fed.config.schema import Config
from fed.data.chat import in_form
from fed.data.examples import Example, Examples
from fed.data.prompts import Prompt, prompts_of, turn_ends
from fed.data.rows import HUMAN, Chat, Preference
from fed.model.arrays import load_arrays, model_tensors, snapshot
from fed.model.generation import Draws
from fed.model.lora import adapter_off, has_adapter
from fed.model.policy import Policy, pair_logps
from fed.model.references import with_reference
from feedback.api import Server
from feedback.asking import marked
from feedback.contest import Contest
from feedback.judges import JudgeSettings, check_unserved, judge_of
from feedback.judging import Judge
from run.pairs import chat_settings, lengths_of
from run.plan import Plan
from server.winrate import WinRate


def judge_for(config: Config, device: torch.device, processes: int, *, supervised: bool) -> Judge | None:
    """Return the judge of the run; None if clients train on the pairs of the data.

    Args:
        config: The settings.
        device: The device of a policy or reward model that judges.
        processes: The processes of the run.
        supervised: The loss reads one response of a pair.

    Raises:
        ValueError: If there is no such judge, or the run's processes cannot share it.
    """
    online = config.online
    if online.judge is None:
        return None
    if supervised and online.reference != "fixed":
        raise ValueError(
            f"online.reference={online.reference} has no effect on a loss without a reference; leave it out"
        )
    cache = Path(config.cache_dir) / "answers"
    server = None if online.model is None else Server(online.model, online.base_url, cache=cache)
    settings = JudgeSettings(
        online.judge,
        online.rule,
        server,
        answers=online.answers,  # type: ignore[arg-type]
        orders=online.orders,  # type: ignore[arg-type]
        seed=config.seed,
        device=device,
    )
    if not settings.is_served:
        given = {name: getattr(online, name) for name in ("model", "base_url", "answers", "orders")}
        check_unserved(online.judge, given, OnlineSettings(), "online.")
    elif processes > 1:
        raise ValueError(
            f"online.judge={online.judge} asks a server, which needs a run of one process; it has {processes}"
        )
    return judge_of(settings)


def prompts_in(plan: Plan, rows: Sequence[Preference]) -> list[Prompt]:
    """Return the different prompts of the rows, as the run's policy reads them."""
    config = plan.config
    return prompts_of(rows, plan.policy.tokenizer, lengths=lengths_of(config), chat=chat_settings(config))


def draws_of(plan: Plan) -> Draws:
    """Return how responses are drawn, by clients and to measure the win rate."""
    config, split, chat = plan.config, plan.pairs.rows.split, chat_settings(plan.config)
    longest = config.online.max_new_tokens or config.max_length - config.max_prompt_length
    rows = (*split.pool, *split.test)
    talks = any(isinstance(in_form(row, chat).prompt, Chat) for row in rows)
    return Draws(
        longest,
        config.eval_batch_size,
        config.seed,
        temperature=config.online.temperature,
        top_p=config.online.top_p,
        stop=turn_ends(plan.policy.tokenizer, chat) if talks else (),
        stop_strings=(HUMAN,) if marked(in_form(row, chat) for row in rows) else (),
    )


def fresh_pairs(plan: Plan, initial: ArrayRecord) -> FreshPairs | None:
    """Return the maker of the clients' fresh pairs; None if they train on the pairs of the data.

    Args:
        plan: The run.
        initial: The weights before training, from which a fixed reference comes.
    """
    config, judge = plan.config, plan.judge
    if judge is None:
        return None
    policy, size = plan.client_policy, config.eval_batch_size

    def fill(examples: Sequence[Example]) -> Examples:
        if config.online.reference == "previous":
            column = pair_logps(policy, examples, batch_size=size)
            return Examples.of(examples).with_reference(np.asarray(column, dtype=np.float64))
        with before_training(policy, initial):
            return with_reference(policy, examples, batch_size=size, cache=None, weights_hash="")

    @functools.cache
    def prompts(client_id: int) -> list[Prompt]:
        return prompts_in(plan, plan.pairs.rows.split.clients[client_id].train)

    return FreshPairs(policy, judge, config.online, draws_of(plan), fill, prompts)


@contextmanager
def before_training(policy: Policy, initial: ArrayRecord) -> Iterator[None]:
    """Give the model the weights before training inside the context, and then those back that it had."""
    if has_adapter(policy.model):
        with adapter_off(policy.model):
            yield
        return
    received = snapshot(model_tensors(policy.model))
    load_arrays(policy.model, initial)
    try:
        yield
    finally:
        load_arrays(policy.model, received)


def client_win_rate(plan: Plan, initial: ArrayRecord) -> ClientWinRate | None:
    """Return the measurement of the clients' win rates on their held-out prompts; None if there is none.

    Args:
        plan: The run.
        initial: The weights before training.
    """
    judge, count = plan.judge, plan.config.online.client_eval_prompts
    if judge is None or not count:
        return None
    draws, policy = draws_of(plan), plan.client_policy

    @functools.cache
    def contest(client_id: int) -> Contest:
        prompts = prompts_in(plan, plan.pairs.rows.split.clients[client_id].held_out)[:count]
        return Contest(prompts, draws, judge, (client_id,))

    return ClientWinRate(policy, contest, lambda: before_training(policy, initial))


def win_rate_of(plan: Plan) -> WinRate | None:
    """Return the measurement of the win rate on test prompts; None if there is no judge or no prompt."""
    count = plan.config.online.eval_prompts
    if plan.judge is None or not count:
        return None
    prompts = prompts_in(plan, plan.pairs.rows.split.test)[:count]
    return WinRate(Contest(prompts, draws_of(plan), plan.judge)) if prompts else None
