"""The clients' Flower app: the one place where Flower messages meet training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flwr.app import ConfigRecord, Context, Message, MetricRecord, MetricRecordValues, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from clients.fresh import FreshPairs
from clients.settings import RoundSettings
from clients.state import ClientState, read_state, write_state
from clients.trainer import NO_PAUSES, LocalTrainer
from clients.winrate import ClientWinRate
from fed.config.conditions import AT_LEAST_0
from fed.config.flower import PARTITION_ID
from fed.config.meaning import Limits
from fed.data.examples import Example
from fed.distributed.stop import Pauses
from fed.errors import CannotContinue
from fed.grids.remote import CLIENT, MODEL, RUN, SETTINGS
from fed.model.arrays import load_arrays, model_tensors, snapshot
from fed.tracking.log import Log
from feedback.win_counts import win_rate_of


@dataclass(frozen=True)
class ClientPairs:
    """The pairs of one client: to train on, to evaluate received weights on, and to score its result on."""

    train: Sequence[Example]
    held_out: Sequence[Example] = ()
    scoring: Sequence[Example] = ()  # by `accuracy_on`: the server's pairs, its own held-out pairs, or the test pairs


class PairsByClient(Protocol):
    """The pairs of every client."""

    def __getitem__(self, client_id: int, /) -> ClientPairs:
        """Return the pairs of one client."""


@dataclass(frozen=True)
class Client:
    """The client that answers a message; `partition-id` in the context of the message says which one it is.

    Args:
        trainer: Trains and evaluates the run's one model.
        pairs: The pairs of each client.
        log: The log of the training; it stays at the client.
        pauses: Called between two steps of a training, which may end there.
        budget: The number of pairs that a client trains on in round 1, 2, ...; empty: the trainer's settings decide.
        accuracy_on: Whose pairs the scoring pairs are: server, client or test. The server has scored the weights that
            it sends on its own and on the test pairs; on the client's own the client does so, if it has to decay.
        strict: Refuse keys of a message's config that nothing reads. False: mods, which may read them, run around it.
        fresh: Makes the pairs that clients train on; None: those of the data.
        win_rate: Measures the win rate of received weights; None: no client does.
    """

    trainer: LocalTrainer
    pairs: PairsByClient
    log: Log
    pauses: Pauses = NO_PAUSES
    budget: Sequence[int] = ()
    accuracy_on: str = "server"
    strict: bool = False
    fresh: FreshPairs | None = None
    win_rate: ClientWinRate | None = None

    def train(self, message: Message, context: Context) -> Message:
        """Answer "train" with the trained weights and with metrics, as `client_app` lists them.

        Raises:
            CannotContinue: If the strategy sends something that nothing reads, or a decay without what decides it.
        """
        client_id, config = _client_id(context), config_of(message)
        self._check(message)
        pairs, server_round, state = self.pairs[client_id], _server_round(config), read_state(context.state)
        given = self.budget[server_round - 1] if self.budget else None
        before = state.examples
        with self.log.phase("copy"):
            key = self._receive(message)
        if self.fresh is not None:
            pairs = self._with_fresh(self.fresh, pairs, client_id, server_round, context)
            state.batches, given = 0, None
        due = given or self.trainer.schedule.num_pairs(pairs.train, client_id)[0]
        self.log.start_client(server_round, client_id, due)
        with self.log.phase("evaluate"):
            received = self._accuracy_of_received(config, pairs.scoring)
        with self.log.phase("train"):
            this_round = replace(_round_settings(config, state), pairs=given)
            trained = self.trainer.train(
                client_id, pairs.train, pairs.held_out, state, this_round, self.log, self.pauses
            )
        with self.log.phase("evaluate"):
            scored = self.trainer.evaluate(pairs.scoring) if pairs.scoring else {}
        decays = {"decay": this_round.decay, "decay_next": _decay_next(state, config, scored.get("accuracy"), received)}
        self.log.client(client_id, server_round, "train", {**trained, **decays})
        if scored:
            self.log.client(client_id, server_round, "validation", scored)
        with self.log.phase("copy"):
            write_state(context.state, state)
            arrays = snapshot(model_tensors(self.trainer.policy.model))
        own = {"accuracy": scored["accuracy"]} if "accuracy" in scored else {}
        counts = {"num-examples": len(pairs.train), "pairs": state.examples - before}
        metrics = MetricRecord({**counts, "train_loss": trained["loss"], **own, **decays})
        return Message(RecordDict({key: arrays, "metrics": metrics}), reply_to=message)

    def evaluate(self, message: Message, context: Context) -> Message:
        """Answer "evaluate" with metrics of the received weights on the client's own held-out pairs.

        Raises:
            CannotContinue: As `train`.
        """
        client_id = _client_id(context)
        if self.strict:
            _check_records(message, READ[:1])
        own = self.pairs[client_id].held_out
        with self.log.phase("copy"):
            self._receive(message)
        with self.log.phase("evaluate"):
            found = self.trainer.evaluate(own) if own else {}
        metrics: dict[str, MetricRecordValues] = {"num-examples": len(own)}
        metrics.update({name: found[name] for name in ("accuracy", "margin", "loss") if name in found})
        if self.win_rate is not None:
            with self.log.phase("sample"):
                counts = self.win_rate.count(client_id, context.state)
            metrics = {**metrics, "num-examples": len(own) or max(counts.judged, 1), **counts.as_metrics()}
            if counts.judged:
                found = {**found, "win_rate": win_rate_of(counts).value, "win_prompts": counts.judged}
        self.log.client(client_id, _server_round(config_of(message)), "held-out", found)
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    def _with_fresh(
        self, fresh: FreshPairs, pairs: ClientPairs, client_id: int, server_round: int, context: Context
    ) -> ClientPairs:
        """Return the client's pairs with fresh ones to train on, by the weights it has received."""
        with self.log.phase("sample"):
            train, told = fresh.of(client_id, server_round, pairs.train, context.state)
        if self.pauses.point() is None:  # else the draws were reported when the training began
            self.log.client(client_id, server_round, "online", told)
        return replace(pairs, train=train)

    def _check(self, message: Message) -> None:
        """Refuse a "train" message with keys or records that nothing reads, or with half a decay."""
        if self.strict:
            _check_records(message, READ)
        _check_values(config_of(message), self.accuracy_on)

    def _accuracy_of_received(self, config: ConfigRecord, scoring: Sequence[Example]) -> float | None:
        """Return the accuracy of the received weights on the scoring pairs; None if no decay depends on it."""
        if "decay-rate" not in config or config.get("decay-mode") == "constant":
            return None
        if self.accuracy_on == "client":
            return self.trainer.evaluate(scoring)["accuracy"]
        return float(config["server-accuracy"])  # type: ignore[arg-type]

    def _receive(self, message: Message) -> str:
        """Load the message's weights into the model and return the key they came under."""
        key, arrays = next(iter(message.content.array_records.items()))
        load_arrays(self.trainer.policy.model, arrays)
        return key


# Everything that a client reads in the config of a message; what carries the message is the grid's.
READ = ("server-round", "server-accuracy", "decay-rate", "decay-mode", "proximal-mu", "lr")
# Infinity and NaN are out of every range.
LIMITS = {"lr": AT_LEAST_0, "proximal-mu": AT_LEAST_0, "decay-rate": Limits(above=0, at_most=1)}
CARRIES = (CLIENT, MODEL, RUN, SETTINGS)


def _check_records(message: Message, read: Sequence[str]) -> None:
    """Refuse what nothing reads: a second record of a kind, metrics, and other keys of the config than `read`."""
    content, config = message.content, config_of(message)
    for key in [*[*content.array_records][1:], *content.metric_records, *[*content.config_records][1:]]:
        raise CannotContinue(
            f"the strategy sends clients a record {key!r}, which nothing reads; clients read one of arrays and one of "
            "config: put it there, or name a mod that reads it (client_mods)"
        )
    for key in sorted(config.keys() - {*read, *CARRIES}):
        raise CannotContinue(
            f"the strategy sends clients {key}={config[key]!r}, which nothing reads; clients read {', '.join(read)}: "
            "send one of these, or name a mod that reads it (client_mods)"
        )


def _check_values(config: ConfigRecord, accuracy_on: str) -> None:
    """Refuse values out of range, and a decay that lacks what decides it."""
    for key, limits in LIMITS.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, int | float) or not limits.hold(value)):
            raise CannotContinue(f"the strategy sends clients {key}={value!r}; expected a number {limits.text}")
    if config.get("decay-mode", "constant") not in ("constant", "cumulative"):
        raise CannotContinue(
            f"the strategy sends clients decay-mode={config['decay-mode']!r}; expected constant or cumulative"
        )
    if "decay-mode" in config and "decay-rate" not in config:
        raise CannotContinue("the strategy sends clients decay-mode without decay-rate; send both, or neither")
    on_accuracy = "decay-rate" in config and config.get("decay-mode") != "constant" and accuracy_on != "client"
    if on_accuracy and "server-accuracy" not in config:
        raise CannotContinue(
            "the strategy sends clients decay-rate without server-accuracy, which decides whether they decay; set "
            "needs_server_accuracy = True in its class, or send decay-mode=constant"
        )


def client_app(client: Client, mods: Sequence[Mod]) -> ClientApp:
    """Return the Flower app that all clients run.

    It answers `train` with the record "arrays" (the trained weights) and the record "metrics" (`num-examples`, `pairs`
    trained now, `train_loss`, `accuracy` on the scoring pairs, `decay` in force in this round and `decay_next`), and
    `evaluate` with metrics of the received weights on the client's own pairs. It reads these keys of the message's
    config, all optional: `server-round`, `server-accuracy` and `decay-rate` (lambda_k), `decay-mode`, `proximal-mu`,
    and `lr`: the learning rate of this round, before decay and warm-up, in place of the setting.
    """
    app = ClientApp(mods=list(mods))
    app.train()(client.train)
    app.evaluate()(client.evaluate)
    return app


def _client_id(context: Context) -> int:
    return int(context.node_config[PARTITION_ID])


def config_of(message: Message) -> ConfigRecord:
    """Return the configuration that a message carries; an empty one if it has none."""
    return next(iter(message.content.config_records.values()), ConfigRecord())


def _server_round(config: ConfigRecord) -> int:
    return int(config.get("server-round", 1))  # type: ignore[arg-type]


def _decay_next(state: ClientState, config: ConfigRecord, accuracy: float | None, received: float | None) -> float:
    """Set lambda_k <- decay_rate lambda_k if the result is no better than the weights received, and return it."""
    if received is not None and accuracy is not None and accuracy <= received:
        state.decay *= config["decay-rate"]  # type: ignore[operator]
    return _round_settings(config, state).decay


def _round_settings(config: ConfigRecord, state: ClientState) -> RoundSettings:
    constant = config.get("decay-mode") == "constant"
    decay = config["decay-rate"] if constant else state.decay
    lr = config.get("lr")
    return RoundSettings(
        decay=float(decay),  # type: ignore[arg-type]
        proximal_mu=float(config.get("proximal-mu", 0.0)),  # type: ignore[arg-type]
        lr=None if lr is None else float(lr),  # type: ignore[arg-type]
    )
