"""The win rate that a client measures on its own held-out prompts, of which it tells counts only."""

from collections.abc import Callable
from contextlib import AbstractContextManager

from flwr.app import ConfigRecord, RecordDict

from fed.model.policy import Policy
from feedback.contest import Contest
from feedback.win_counts import WinCounts, counts_of

KEPT, TEXTS = "before training", "responses"  # the record of a client's context, and its key


class ClientWinRate:
    """The measurement of all clients' win rates against the policy before training.

    Args:
        policy: The run's one model; it holds the weights that the client received when `count` is called.
        contest: Returns the contest of a client.
        before_training: Inside the context that it returns, the model has the weights before training.
    """

    def __init__(
        self,
        policy: Policy,
        contest: Callable[[int], Contest],
        before_training: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._policy, self._contest, self._before = policy, contest, before_training

    def count(self, client_id: int, kept: RecordDict) -> WinCounts:
        """Draw responses to the client's held-out prompts, have them judged there, and count.

        Args:
            client_id: The client.
            kept: The client's context, which keeps the responses before training.
        """
        contest = self._contest(client_id)
        new = contest.responses(self._policy)
        if KEPT not in kept.config_records:
            with self._before():
                kept[KEPT] = ConfigRecord({TEXTS: contest.responses(self._policy)})
        return counts_of(*contest.battles(new, kept.config_records[KEPT][TEXTS]))  # type: ignore[arg-type]
