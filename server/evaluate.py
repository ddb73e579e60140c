"""The server's evaluation of the global model, which also tells clients its accuracy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord

from fed.data.tokens import Example
from fed.model.arrays import load_arrays
from fed.model.evaluation import Evaluation
from fed.model.policy import Policy
from fed.model.samples import Sampler
from fed.seeding import seed_globals
from fed.tracking.log import Log
from server.privacy import Ledger


@dataclass
class ServerEvaluation:
    """Flower's `evaluate_fn`: called with the initial weights as round 0, then after every aggregation.

    Logs validation and test metrics before rounds 0, f, 2f, ... (f = `frequency_of_test`) and after the last, so R
    rounds at f = 1 give R + 1 points. Puts the validation accuracy of the weights about to be sent into
    `train_config["server-accuracy"]`, the very record `Strategy.start` sends to clients; in rounds without a logged
    evaluation only if `always_accuracy`. Seeds the global generators that Flower's sampling and noise draw from, so
    that a round's draws depend on the seed and the round only.
    """

    policy: Policy
    splits: Mapping[str, Sequence[Example]]  # "validation" and "test"
    score: Callable[[Policy, Sequence[Example]], Evaluation]
    log: Log
    num_rounds: int
    frequency_of_test: int = 1
    always_accuracy: bool = False
    seed: int = 0
    client_weights: Callable[[], Mapping[int, float]] = dict  # shares of the last aggregate, if the strategy tells
    sampler: Sampler | None = None  # draws responses at every logged evaluation
    ledger: Ledger | None = None  # with `privacy=`
    is_over: Callable[[], bool] = lambda: False  # whether the present round is the last one, whatever `num_rounds`
    train_config: ConfigRecord = field(default_factory=ConfigRecord)
    _round: int = 0  # evaluated last

    def state_dict(self) -> dict[str, Any]:
        """What the next round depends on."""
        sampler = {} if self.sampler is None else {"sampler": self.sampler.state_dict()}
        return {"round": self._round, "train_config": self.train_config, **sampler}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Be as after the call that this state is of."""
        self._round = state["round"]
        self.train_config.update(state["train_config"])
        if self.sampler is not None:
            self.sampler.load_state_dict(state["sampler"])
        seed_globals(self.seed, "flower", self._round)

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Metrics of these weights, None where none are due."""
        if server_round:
            for node, weight in self.client_weights().items():
                self.log.client(node, server_round, "aggregate", {"weight": weight})
            self.log.clients_done(server_round)
            if self.ledger is not None:
                self.log.privacy(server_round, self.ledger.spent(), self.ledger.remarks())
        is_last = server_round == self.num_rounds or (server_round > 0 and self.is_over())
        due = server_round % self.frequency_of_test == 0 or is_last
        found: dict[str, Evaluation] = {}
        if due or self.always_accuracy:
            with self.log.phase("copy"):
                load_arrays(self.policy.model, arrays)
            with self.log.phase("evaluate"):
                found = {
                    split: self.score(self.policy, examples)
                    for split, examples in self.splits.items()
                    if examples and (due or split == "validation")
                }
        if "validation" in found:
            self.train_config["server-accuracy"] = found["validation"].metrics["accuracy"]
        self._round = server_round
        seed_globals(self.seed, "flower", server_round)
        if not due:
            return None
        samples: Sequence[Mapping[str, str]] = ()
        if self.sampler is not None:
            with self.log.phase("sample"):
                samples = self.sampler.draw(self.policy)
        for split, evaluation in found.items():
            self.log.server(server_round, split, evaluation.metrics)
        self.log.evaluated(server_round, found["test"].margins if "test" in found else (), samples)
        return MetricRecord(
            {f"{split}_{name}": value for split, found_in in found.items() for name, value in found_in.metrics.items()}
        )
