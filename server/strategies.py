"""The strategies that this project adds to Flower's: a streaming mean, and `FeDPO` on top of it."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from logging import INFO
from types import MappingProxyType

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.supercore import log
from torch import Tensor

from fed.config.sections.federation import WEIGHTINGS
from fed.distributed.ranks import ALONE, Ranks
from fed.model.arrays import RemoteArrays, to_record, to_tensors


class StreamingFedAvg(FedAvg):
    """Flower's FedAvg (arXiv 1602.05629) with one reply in memory at a time, whatever the number of clients.

    It takes FedAvg's parameters and returns the same result up to float32 rounding. A subclass changes the weights by
    overriding `log_weight`.

    Args:
        max_client_weight: The largest share of a client in the aggregate; None: no limit. With a limit all replies of a
            round are in memory at once.
        **fedavg: Flower's own FedAvg parameters.

    Raises:
        ValueError: If the limit is not above 0 and at most 1.
    """

    elementwise = True  # parts of the arrays give the same parts of the result
    client_weights: Mapping[int, float] = MappingProxyType({})  # each node's share of the last aggregate
    groups: Ranks = ALONE  # each group of processes holds the replies of some clients

    def __init__(self, max_client_weight: float | None = None, **fedavg: object) -> None:
        super().__init__(**fedavg)  # type: ignore[arg-type]
        if max_client_weight is not None and not 0 < max_client_weight <= 1:
            raise ValueError(f"max_client_weight={max_client_weight} is out of range; expected above 0 and at most 1")
        self.max_client_weight = max_client_weight

    @property
    def streams(self) -> bool:
        """True if each reply is used once, in order, so that the grid can send them one by one."""
        return self.max_client_weight is None

    def log_weight(self, metrics: MetricRecord) -> float:
        """Return the logarithm of this reply's weight, up to a constant common to all replies."""
        return math.log(float(metrics[self.weighted_by_key]))  # type: ignore[arg-type]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the weighted mean of arrays and of metrics without failed replies; (None, None) if nobody answered."""
        mean = RunningMean()
        contents: list[RecordDict] = []
        nodes: list[int] = []
        if self.max_client_weight is None:
            weights: Iterator[float] | None = None
        else:
            replies = list(replies)
            usual = [self.log_weight(_metrics(reply)) for reply in replies if not reply.has_error()]
            weights = iter(cap_shares(usual, self.max_client_weight))
        for reply in replies:
            valid, _ = self._check_and_log_replies([reply], is_train=True)
            if valid:
                metrics = _metrics(reply)
                weight = self.log_weight(metrics) if weights is None else next(weights)
                arrays = next(iter(reply.content.array_records.values()))
                if isinstance(arrays, RemoteArrays):
                    mean.add_elsewhere(to_tensors(arrays.like), weight)
                else:
                    mean.add(to_tensors(arrays), weight)
                contents.append(RecordDict({"metrics": metrics}))
                nodes.append(reply.metadata.src_node_id)
            del reply  # or it would stay alive while the next client trains
        if not contents:
            return None, None
        self.client_weights = dict(zip(nodes, mean.weights(), strict=True))
        mean.join(self.groups)
        return to_record(mean.value), self.train_metrics_aggr_fn(contents, self.weighted_by_key)


class FeDPO(StreamingFedAvg):
    """Federated DPO: a mean that weighs clients by how well their models rank the scoring pairs.

    theta^{t+1} = sum_k w_k theta_k with w_k = exp(temp a_k) / sum_j exp(temp a_j), where a_k is the accuracy of client
    k. Clients decay lambda_k <- decay_rate lambda_k if a_k <= A^t, the accuracy of the model that they received on the
    same pairs.

    Args:
        temp: Inverse temperature: 0 gives the plain mean, a large value favours the best client.
        decay_rate: The factor of the decay; 1 never decays.
        decay: "cumulative" as above, or "constant": lambda_k = decay_rate in every round, as the published code
            behaves.
        weighting: "accuracy", "samples" (FedAvg) or "accuracy_times_samples".
        **fedavg: Parameters of `StreamingFedAvg`.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        temp: float = 0.1,
        decay_rate: float = 0.995,
        decay: str = "cumulative",
        weighting: str = "accuracy",
        **fedavg: object,
    ) -> None:
        super().__init__(**fedavg)  # type: ignore[arg-type]
        if weighting not in WEIGHTINGS:
            raise ValueError(f"weighting={weighting} is unknown; expected one of {', '.join(WEIGHTINGS)}")
        if not 0 < decay_rate <= 1:
            raise ValueError(f"decay_rate={decay_rate} is out of range; expected 0 < decay_rate <= 1")
        if decay not in ("cumulative", "constant"):
            raise ValueError(f"decay={decay} is unknown; expected cumulative or constant")
        if not 0 <= temp < math.inf:
            raise ValueError(f"temp={temp} is out of range; expected a finite number, at least 0")
        self.temp, self.decay_rate, self.decay, self.weighting = temp, decay_rate, decay, weighting

    @property
    def needs_server_accuracy(self) -> bool:
        """True if clients must know the accuracy of the model they receive in every round, logged or not."""
        return self.decay == "cumulative" and self.decay_rate < 1

    @property
    def reads_accuracy(self) -> bool:
        """True if the accuracy of clients decides their weights; with privacy= there is none to read."""
        return self.temp != 0 and self.weighting != "samples"

    def summary(self) -> None:
        """Log the settings."""
        log(INFO, "\t├──> FeDPO settings: temp %s | weighting %s", self.temp, self.weighting)
        log(INFO, "\t│\t└── decay rate %s, %s", self.decay_rate, self.decay)
        super().summary()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the round as Flower does, and add what clients need to decay."""
        if self.decay == "constant" or self.needs_server_accuracy:
            config["decay-rate"], config["decay-mode"] = self.decay_rate, self.decay
        return super().configure_train(server_round, arrays, config, grid)

    def log_weight(self, metrics: MetricRecord) -> float:
        """Return temp a_k, log n_k, or their sum."""
        by_accuracy = self.temp * float(metrics["accuracy"]) if self.reads_accuracy else 0.0  # type: ignore[arg-type]
        return by_accuracy + (super().log_weight(metrics) if self.weighting != "accuracy" else 0.0)


class RunningMean:
    """A weighted mean of dictionaries of tensors, kept as one dictionary in float32.

    Adding theta with weight w moves the mean by the fraction w / (sum of weights so far) towards theta. So a single
    theta is returned bit for bit. Only logarithms of weights are kept, so no weight can overflow.
    """

    def __init__(self) -> None:
        self.value: dict[str, Tensor] = {}
        self.log_weights: list[float] = []
        self._here: list[bool] = []  # the members that are in `value`
        self._like: Mapping[str, Tensor] = {}

    @torch.no_grad()
    def add(self, tensors: dict[str, Tensor], log_weight: float) -> None:
        """Add a member.

        Raises:
            ValueError: If its names or shapes differ from those of earlier members.
        """
        if self.value and {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in self.value.items()}:
            raise ValueError("clients sent weights of different names or shapes; they must train the same model")
        self.log_weights.append(log_weight)
        self._here.append(True)
        fraction = _shares(list(itertools.compress(self.log_weights, self._here)))[-1]
        for name, tensor in tensors.items():
            if name not in self.value:
                self.value[name] = tensor.to(torch.float32, copy=True)  # the reply stays as it came
            else:
                self.value[name].lerp_(tensor.float(), fraction)

    def add_elsewhere(self, like: Mapping[str, Tensor], log_weight: float) -> None:
        """Add a member that another group holds; its arrays have the names and shapes of `like`."""
        self.log_weights.append(log_weight)
        self._here.append(False)
        self._like = like

    @torch.no_grad()
    def join(self, groups: Ranks) -> None:
        """Combine the means of all groups into the mean of all members; all groups call it."""
        if groups.count == 1:
            return
        share = sum(itertools.compress(self.weights(), self._here))
        value = self.value or {name: torch.zeros_like(t, dtype=torch.float32) for name, t in self._like.items()}
        self.value = {name: groups.sum(tensor.mul_(share)) for name, tensor in value.items()}

    def weights(self) -> Sequence[float]:
        """Return the share of each member so far; they sum to one."""
        return _shares(self.log_weights)


def cap_shares(log_weights: Sequence[float], most: float) -> list[float]:
    """Return the logarithms of shares of at most `most`: what is above is spread over the others as they weigh.

    K clients whose equal shares 1/K are above the limit get equal shares.
    """
    if most * len(log_weights) <= 1:
        return [0.0] * len(log_weights)
    over: set[int] = set()
    while True:  # logarithms all the way: a share of 1e-400 is 0
        rest = [k for k in range(len(log_weights)) if k not in over]
        rest_weighs = np.logaddexp.reduce([log_weights[k] for k in rest])
        left = math.log(1 - most * len(over))
        logs = {k: left + log_weights[k] - float(rest_weighs) for k in rest}
        more = {k for k, log in logs.items() if log > math.log(most) + 1e-12}
        if not more:
            return [logs.get(k, math.log(most)) for k in range(len(log_weights))]
        over |= more


def _metrics(reply: Message) -> MetricRecord:
    return next(iter(reply.content.metric_records.values()))


def _shares(log_weights: Sequence[float]) -> list[float]:
    """exp(l_k) / sum_j exp(l_j)."""
    logs = np.asarray(log_weights)
    shares = np.exp(logs - logs.max())
    return [float(share) for share in shares / shares.sum()]
