"""The server's evaluation of the global model, which also tells the clients its accuracy."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fed.data.examples import Example
from fed.errors import CannotContinue, NotFinite
from fed.model.arrays import load_arrays
from fed.model.evaluation import Evaluation, Metrics
from fed.model.policy import Policy
from fed.model.samples import Sampler
from fed.seeding import seed_globals
from fed.tracking.log import Log
from server.ledgers import Ledger
from server.winrate import WinRate

MAJORITY, SEVERAL = 0.5, 4  # a client with more than this share, of so many or more, is named in the round's line


@dataclass
class ServerEvaluation:
    """Flower's `evaluate_fn`, called with the initial weights as round 0, then after every aggregation.

    It logs validation and test metrics of rounds 0, f, 2f, ... (f = `frequency_of_test`) and of the last round, so R
    rounds at f = 1 give R + 1 points.

    It puts the accuracy of the current weights on the split `accuracy_on` into `train_config["server-accuracy"]`.
    `Strategy.start` sends that same record to the clients. In rounds without a logged evaluation it does so only if
    `always_accuracy`.

    It seeds the global generators that Flower's sampling and noise draw from, so that the draws of a round depend on
    the seed and the round only.
    """

    policy: Policy
    splits: Mapping[str, Sequence[Example]]  # "validation" and "test"
    score: Callable[[Policy, Sequence[Example]], Evaluation]
    log: Log
    num_rounds: int
    frequency_of_test: int = 1
    accuracy_on: str = "validation"  # the pairs that clients score their result on too
    always_accuracy: bool = False
    seed: int = 0
    client_weights: Callable[[], Mapping[int, float]] = dict  # the clients' shares of the last aggregate, by node
    sampler: Sampler | None = None  # draws responses at every logged evaluation
    win_rate: WinRate | None = None  # measures the win rate at every logged evaluation
    ledger: Ledger | None = None  # None: privacy=none
    is_over: Callable[[], bool] = lambda: False  # the current round is the last one, whatever `num_rounds`
    train_config: ConfigRecord = field(default_factory=ConfigRecord)
    _round: int = 0  # the last round evaluated

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Evaluate these weights and return their metrics; None in a round without a logged evaluation.

        Raises:
            CannotContinue: If the untrained policy and its reference give a pair different log-probs.
            NotFinite: If a log-prob is not finite.
        """
        if server_round:
            self._log_round(server_round)
        is_last = server_round == self.num_rounds or (server_round > 0 and self.is_over())
        due = server_round % self.frequency_of_test == 0 or is_last
        found = self._scored(arrays, due) if due or self.always_accuracy else {}
        _check_finite(server_round, found)
        if self.accuracy_on in found and "accuracy" in found[self.accuracy_on].metrics:
            self.train_config["server-accuracy"] = found[self.accuracy_on].metrics["accuracy"]
        if server_round == 0:
            _check_ties(found)
        self._round = server_round
        seed_globals(self.seed, "flower", server_round)
        if not due:
            return None
        self._log_evaluation(server_round, found)
        return MetricRecord(
            {f"{split}_{name}": value for split, found_in in found.items() for name, value in found_in.metrics.items()}
        )

    def _log_round(self, server_round: int) -> None:
        """Log the clients' shares of the aggregate and the privacy spent."""
        weights = self.client_weights()
        for node, weight in weights.items():
            self.log.client(node, server_round, "aggregate", {"weight": weight})
            if weight > MAJORITY and len(weights) >= SEVERAL:
                self.log.remark(
                    server_round,
                    f"client {node} has {weight:.0%} of the mean of {len(weights)} clients; see max_client_weight",
                )
        self.log.clients_done(server_round)
        if self.ledger is not None:
            self.log.privacy(server_round, self.ledger.spent(), self.ledger.remarks())

    def _scored(self, arrays: ArrayRecord, due: bool) -> dict[str, Evaluation]:
        """Load the weights and score them on every split that has examples, or on `accuracy_on` only unless `due`."""
        with self.log.phase("copy"):
            load_arrays(self.policy.model, arrays)
        with self.log.phase("evaluate"):
            return {
                split: self.score(self.policy, examples)
                for split, examples in self.splits.items()
                if examples and (due or split == self.accuracy_on)
            }

    def _log_evaluation(self, server_round: int, found: Mapping[str, Evaluation]) -> None:
        samples: Sequence[Mapping[str, str]] = ()
        if self.sampler is not None:
            with self.log.phase("sample"):
                samples = self.sampler.draw(self.policy)
        won: Metrics = {}
        if self.win_rate is not None:
            with self.log.phase("sample"):
                won = self.win_rate.measure(self.policy)
        metrics = {split: evaluation.metrics for split, evaluation in found.items()}
        if won:
            metrics["test"] = {**metrics.get("test", {}), **won}
        for split, of_split in metrics.items():
            self.log.server(server_round, split, of_split)
        self.log.evaluated(server_round, found["test"].margins if "test" in found else (), samples)

    def _drawing(self) -> dict[str, Sampler | WinRate]:
        """Return what remembers responses of the policy before training."""
        both = {"sampler": self.sampler, "win_rate": self.win_rate}
        return {name: one for name, one in both.items() if one is not None}

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        drawn = {name: one.state_dict() for name, one in self._drawing().items()}
        return {"round": self._round, "train_config": self.train_config, **drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state_dict` returned, and seed the global generators for the next round."""
        self._round = state["round"]
        self.train_config.update(state["train_config"])
        for name, one in self._drawing().items():
            one.load_state_dict(state[name])
        seed_globals(self.seed, "flower", self._round)


def _check_finite(server_round: int, found: Mapping[str, Evaluation]) -> None:
    """Check that all log-probs are finite: a comparison with NaN is False, and would count as a wrong answer.

    Raises:
        NotFinite: If not.
    """
    for split, (_, margins) in found.items():
        odd = sum(not math.isfinite(margin) for margin in margins)
        if odd:
            raise NotFinite(
                f"round {server_round}: the policy's log-probs are not finite on {odd} of {len(margins)} {split} pairs"
            )


def _check_ties(found: Mapping[str, Evaluation]) -> None:
    """Check that the untrained policy ties exactly with its reference: they are the same weights.

    Raises:
        CannotContinue: If they do not tie. Then no margin could be trusted.
    """
    for split, (metrics, margins) in found.items():
        if "log_ratio" not in metrics:  # of a reward model
            continue
        apart = sum(margin != 0 for margin in margins)
        if apart or metrics["log_ratio"] != 0:
            raise CannotContinue(
                f"before training the policy is its own reference, but their log-probs differ on {apart} of "
                f"{len(margins)} {split} pairs, by {metrics['log_ratio']:.2g} nats in the mean; either the kept "
                "reference is damaged (remove the folder reference in cache_dir), or this model's log-probs do not "
                "repeat"
            )
