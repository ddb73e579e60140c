"""Mistakes that show only when the data and the model are loaded."""

from collections.abc import Iterable, Sequence

from flwr.serverapp.strategy import Strategy

from fed.config.schema import Config
from fed.data.examples import Example, are_pairs, longest_of
from fed.model.policy import Policy
from run.plan import Pairs
from server.traits import asks


def check_scoring(config: Config, pairs: Pairs, strategy: Strategy) -> None:
    """Refuse a strategy that weighs clients by accuracy where there are no pairs to score them on.

    Raises:
        ValueError: If so.
    """
    lists = (pairs.validation, pairs.test, *(client.held_out for client in pairs.clients))
    if config.online.judge is not None:
        _check_online(config, pairs, strategy)
        if not any(lists):
            return
    if not all(map(are_pairs, lists)):
        _check_needs_no_accuracy(strategy, "single responses")
    if asks(strategy, "fraction_evaluate") or config.accuracy_on == "client":
        setting = "accuracy_on=client" if config.accuracy_on == "client" else "strategy.fraction_evaluate > 0"
        without = [k for k, client in enumerate(pairs.clients) if not client.held_out]
        if without:
            way_out = f"raise client_eval_fraction={config.client_eval_fraction} or lower client_num_in_total"
            if (split := pairs.rows.split).clients and len(
                {row.conversation for row in split.clients[without[0]].train}
            ) == 1:
                by = f", as holdout_by={config.holdout_by} has them" if config.holdout_by else ""
                way_out = f"its pairs are one conversation{by}, and none is divided: lower client_num_in_total"
            raise ValueError(
                f"{setting} but client {without[0]} has no held-out pairs ({len(without)} such clients); {way_out}"
            )
    if config.accuracy_on == "test" and not pairs.test:
        raise ValueError("accuracy_on=test but there are no test pairs; give datasets, or use accuracy_on=client")
    if config.accuracy_on == "server" and not pairs.validation:
        raise ValueError(f"accuracy_on=server but {_no_pairs(config)}, or use accuracy_on=client")
    if config.score_on == "server" and not pairs.validation:
        raise ValueError(f"score_on=server but {_no_pairs(config)}, or use score_on=client")


def _check_online(config: Config, pairs: Pairs, strategy: Strategy) -> None:
    """Refuse to mix pairs in that no client has, and a win rate on prompts that no client holds out or is asked about.

    Raises:
        ValueError: If so, or if the strategy weighs clients by an accuracy that prompts do not have.
    """
    if not any((pairs.validation, pairs.test, *(client.held_out for client in pairs.clients))):
        _check_needs_no_accuracy(strategy, "prompts without responses")
    if config.online.mix and not any(client.train for client in pairs.clients):
        raise ValueError(f"online.mix={config.online.mix} has no effect: the data have prompts only; leave it out")
    if not config.online.client_eval_prompts:
        return
    setting = f"online.client_eval_prompts={config.online.client_eval_prompts}"
    if not asks(strategy, "fraction_evaluate"):
        raise ValueError(
            f"{setting} has no effect with strategy.fraction_evaluate=0; give strategy.fraction_evaluate=1"
        )
    without = [k for k, client in enumerate(pairs.rows.split.clients) if not client.held_out]
    if without:
        raise ValueError(f"{setting} but client {without[0]} holds no prompt out; raise client_eval_fraction")


def check_reward(config: Config) -> None:
    """Refuse settings that a reward model cannot follow.

    Raises:
        ValueError: Naming the setting.
    """
    refused = {
        "sample_during_eval=true": config.sample_during_eval,
        f"online.judge={config.online.judge}": config.online.judge is not None,
    }
    for setting, is_given in refused.items():
        if is_given:
            raise ValueError(f"{setting} has no effect with loss=reward: a reward model writes no responses")
    if config.trainer != "BasicTrainer":
        raise ValueError(f"trainer={config.trainer} cannot split a reward model yet; use trainer=BasicTrainer")


def _check_needs_no_accuracy(strategy: Strategy, data: str) -> None:
    """Refuse a strategy that compares accuracies where data have no pairs to be right about.

    Raises:
        ValueError: Naming the strategy.
    """
    if asks(strategy, "reads_accuracy") or asks(strategy, "needs_server_accuracy"):
        raise ValueError(
            f"{type(strategy).__name__} weighs clients by accuracy, which {data} do not have; use "
            "strategy=fedavg, or give pairs"
        )


def _no_pairs(config: Config) -> str:
    """Say why the server has no validation pairs, and what gives it some."""
    if not config.datasets:
        return "datasets=[] leaves the server no pairs; give it a data set"
    return f"server_fraction={config.server_fraction} leaves the server no pairs; raise it"


def check_lengths(policy: Policy, max_length: int, lists: Iterable[Sequence[Example]]) -> None:
    """Refuse pairs that are longer than the model's positions.

    Some models answer with an index error, others with nonsense.

    Raises:
        ValueError: If an example has more tokens than the model has positions.
    """
    config = policy.model.config
    positions = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))  # the latter: MPT
    longest = max((longest_of(examples) for examples in lists), default=0)
    if positions is not None and longest > positions:
        raise ValueError(
            f"max_length={max_length} allows pairs of {longest} tokens but the model has {positions} "
            f"positions; use max_length={positions} and a smaller max_prompt_length"
        )
