"""The keys of online runs, `online.judge` for one."""

from dataclasses import dataclass

from fed.config.conditions import ABOVE_0, AT_LEAST_0, AT_LEAST_1, NOT_ONLINE
from fed.config.meaning import Limits, key, unless


@dataclass
class OnlineSettings:
    """Pairs that clients make themselves: they draw responses from the policy they received, and judge them there."""

    judge: str | None = key(
        None,
        "Turns this on. Who judges the responses: `lexicon`, a rule over words; `policy:POLICY`, the implicit reward "
        "of a trained policy; `reward_model:MODEL`, its scores; or a prompt of feedback/judge_prompts/, which a served "
        "model answers ([ai_feedback.md](ai_feedback.md)); null: clients train on the pairs of the data.",
    )
    rule: str | None = key(
        None,
        'For `lexicon`: what each occurrence of a phrase adds, `"{sorry: -1, per_word: -0.01}"`.',
        idle=(unless("online.judge", "lexicon", "another judge than lexicon"),),
    )
    model: str | None = key(None, "For a served model: its name.", idle=(NOT_ONLINE,))
    base_url: str | None = key(
        None, "Where it is served, `http://127.0.0.1:8000/v1`; null: as OPENAI_BASE_URL says.", idle=(NOT_ONLINE,)
    )
    answers: str = key(
        "text",
        "How it answers: as the prompt says, in JSON, or by the probability of letters.",
        choices=("text", "json", "letters", "choice"),
        idle=(NOT_ONLINE,),
    )
    orders: str = key(
        "both",
        "It sees each pair in both orders. `both`: what it judges otherwise in each is a tie; `mean`: the mean of its "
        "probabilities decides.",
        choices=("both", "mean"),
        idle=(NOT_ONLINE,),
    )
    n: int = key(
        2,
        "Responses that a client draws to a prompt; the best is preferred to the worst.",
        Limits(at_least=2, at_most=64),
        idle=(NOT_ONLINE,),
    )
    prompts: int | None = key(
        None, "Prompts of its own that a client draws for in a round; null: all.", AT_LEAST_1, idle=(NOT_ONLINE,)
    )
    every: int = key(
        1, "Rounds between draws of a client; in the others it trains on its last ones.", AT_LEAST_1, idle=(NOT_ONLINE,)
    )
    mix: float = key(
        0.0,
        "Share of pairs of the data among those that a client trains on.",
        Limits(at_least=0, below=1),
        idle=(NOT_ONLINE,),
    )
    reference: str = key(
        "fixed",
        "What fresh pairs are trained against: the policy before training (`fixed`), or the one that the client "
        "received (`previous`, TR-DPO, arXiv 2404.09656).",
        choices=("fixed", "previous"),
        idle=(NOT_ONLINE,),
    )
    temperature: float = key(1.0, "Divides the logits of drawn responses.", ABOVE_0, idle=(NOT_ONLINE,))
    top_p: float = key(
        1.0,
        "Only the likeliest tokens are drawn, as many as have this share of the probability.",
        Limits(above=0, at_most=1),
        idle=(NOT_ONLINE,),
    )
    max_new_tokens: int | None = key(
        None,
        "Tokens of the longest drawn response; null: `max_length` - `max_prompt_length`.",
        AT_LEAST_1,
        idle=(NOT_ONLINE,),
    )
    eval_prompts: int = key(
        64,
        "Test prompts on which the server measures the win rate against the policy before training, at each "
        "evaluation, with the same judge; 0: none.",
        AT_LEAST_0,
        idle=(NOT_ONLINE,),
    )
    client_eval_prompts: int = key(
        0,
        "Held-out prompts of its own on which each client measures the win rate and tells counts only, whenever the "
        "strategy has clients evaluate (`strategy.fraction_evaluate`); 0: none.",
        AT_LEAST_0,
        idle=(NOT_ONLINE,),
    )
