"""The win rate of the global policy against the policy before training: the server's own, and that of all clients."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flwr.app import Message, MetricRecord
from flwr.serverapp.strategy import Strategy

from fed.model.evaluation import Metrics
from fed.model.policy import Policy
from feedback.contest import Contest
from feedback.win_counts import BINS, LENGTHS, NAMES, WinCounts, length_controlled_of, pooled, win_rate_of
from feedback.winrates import as_metrics, length_controlled, win_rate

OnCounts = Callable[[int, Metrics], None]  # called with a round and the rates of all clients together


class WinRate:
    """A measurement on the server's test prompts that is made at each evaluation.

    Args:
        contest: The prompts. The first call sees the policy before training.
    """

    def __init__(self, contest: Contest) -> None:
        self._contest = contest
        self._before: list[str] = []  # the responses of the policy before training

    def measure(self, policy: Policy) -> Metrics:
        """Return the win rate, a tie counting half, and the length-controlled one, each with its 95 % interval.

        Before training all responses tie, and the rate is 0.5. Pairs that the judge says nothing of are left out and
        counted as `win_unjudged`.
        """
        new = self._contest.responses(policy)
        self._before = self._before or new
        found, unjudged = self._contest.battles(new, self._before)
        rates = as_metrics(win_rate(found), length_controlled(found)) if found else {}
        return {"win_unjudged": unjudged, **rates, "win_prompts": len(found)}

    def state_dict(self) -> dict[str, Any]:
        """Return the responses of the policy before training, which a resumed run cannot draw again."""
        return {"before": self._before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned."""
        self._before = list(state["before"])


def pool_counts(strategy: Strategy, on_counts: OnCounts) -> None:
    """Take the clients' counts out of their replies before the strategy's `aggregate_evaluate`, and report their rates.

    They are sums, of which a strategy would make means.

    Args:
        strategy: Any.
        on_counts: Is told the rates of each round.
    """
    aggregate = strategy.aggregate_evaluate

    def aggregate_evaluate(server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        replies = list(replies)
        counts = [found for reply in replies if not reply.has_error() and (found := _taken_out(reply)) is not None]
        if counts:
            every = pooled(counts)
            rates = as_metrics(win_rate_of(every), length_controlled_of(every)) if every.judged else {}
            on_counts(server_round, {"win_unjudged": every.unjudged, **rates, "win_prompts": every.judged})
        return aggregate(server_round, replies)

    strategy.aggregate_evaluate = aggregate_evaluate  # type: ignore[method-assign]


def _taken_out(reply: Message) -> WinCounts | None:
    """Return the counts of a reply, which then has them no longer; None if it has none."""
    for metrics in reply.content.metric_records.values():
        if BINS in metrics:
            own = {name: metrics.pop(name) for name in (*NAMES, LENGTHS, BINS)}
            return WinCounts.of_metrics(own)
    return None
