"""The `ClientApp`: the one place where Flower messages meet training."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from flwr.app import ConfigRecord, Context, Message, MetricRecord, MetricRecordValues, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod

from clients.settings import RoundSettings
from clients.state import ClientState, read_state, write_state
from clients.trainer import LocalTrainer, Pauses
from fed.data.tokens import Example
from fed.model.arrays import load_arrays, model_tensors, snapshot
from fed.model.evaluation import Metrics
from fed.tracking.log import Log


@dataclass(frozen=True)
class ClientPairs:
    """What one client holds: pairs to train on, pairs of its own to be evaluated on, pairs its result is scored on."""

    train: Sequence[Example]
    held_out: Sequence[Example] = ()
    scoring: Sequence[Example] = ()  # `accuracy_on`: the server's, its own held-out, or the test pairs


class PairsByClient(Protocol):
    """Who holds which pairs."""

    def __getitem__(self, client_id: int, /) -> ClientPairs:
        """Those of one client."""


def client_app(
    trainer: LocalTrainer,
    clients: PairsByClient,
    log: Log,
    *,
    mods: Sequence[Mod] = (),
    pauses: Pauses | None = None,
    budget: Sequence[int] = (),
) -> ClientApp:
    """The app all clients run; which client it is, `partition-id` of its context says.

    With a `budget`, a client trains on so many pairs in round 1, 2, ..., in place of what the trainer's settings say.

    Answers `train` with the record "arrays" (the trained weights) and the record "metrics" (`num-examples`, `pairs`
    trained now, `train_loss`, `accuracy` on the scoring pairs, `decay`), and `evaluate` with metrics of the received
    weights on the client's own pairs. Understands these keys of the message's config, all optional: `server-round`,
    `server-accuracy` and `decay-rate` (lambda_k), `decay-mode`, `proximal-mu`.
    """
    app = ClientApp(mods=list(mods))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client_id = int(context.node_config["partition-id"])
        pairs, config = clients[client_id], _config(message)
        server_round = _server_round(config)
        state = read_state(context.state)
        given = budget[server_round - 1] if budget else None
        before = state.examples
        log.start_client(server_round, client_id, given or trainer.num_pairs(pairs.train, client_id)[0])

        def on_update(split: str, tags: Metrics, step: int) -> None:
            with log.phase("log"):
                log.update(client_id, split, tags, step=step)

        def on_pairs(count: int) -> None:
            with log.phase("log"):
                log.advance(count)

        with log.phase("copy"):
            key = _receive(message, trainer)
        with log.phase("train"):
            trained = trainer.train(
                client_id,
                pairs.train,
                pairs.held_out,
                state,
                replace(_round_settings(config, state), pairs=given),
                on_update=on_update,
                on_pairs=on_pairs,
                pauses=pauses,
            )
        with log.phase("evaluate"):
            scored = trainer.evaluate(pairs.scoring)
        _update_decay(state, config, scored["accuracy"])
        decay = _round_settings(config, state).decay
        log.client(client_id, server_round, "train", {**trained, "decay": decay})
        log.client(client_id, server_round, "validation", scored)
        with log.phase("copy"):
            write_state(context.state, state)
            arrays = snapshot(model_tensors(trainer.policy.model))
        metrics: dict[str, MetricRecordValues] = {
            "num-examples": len(pairs.train),
            "pairs": state.examples - before,
            "train_loss": trained["loss"],
            "accuracy": scored["accuracy"],
            "decay": decay,
        }
        return Message(RecordDict({key: arrays, "metrics": MetricRecord(metrics)}), reply_to=message)

    @app.evaluate()
    def evaluate_own(message: Message, context: Context) -> Message:
        client_id = int(context.node_config["partition-id"])
        own = clients[client_id].held_out
        with log.phase("copy"):
            _receive(message, trainer)
        with log.phase("evaluate"):
            found = trainer.evaluate(own)
        log.client(client_id, _server_round(_config(message)), "held-out", found)
        metrics: dict[str, MetricRecordValues] = {"num-examples": len(own)}
        metrics.update({name: found[name] for name in ("accuracy", "margin", "loss")})
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    return app


def _receive(message: Message, trainer: LocalTrainer) -> str:
    """Load the message's weights into the model; the key they came under."""
    key, arrays = next(iter(message.content.array_records.items()))
    load_arrays(trainer.policy.model, arrays)
    return key


def _config(message: Message) -> ConfigRecord:
    return next(iter(message.content.config_records.values()), ConfigRecord())


def _server_round(config: ConfigRecord) -> int:
    return int(config.get("server-round", 1))  # type: ignore[arg-type]


def _round_settings(config: ConfigRecord, state: ClientState) -> RoundSettings:
    constant = config.get("decay-mode") == "constant"
    decay = config["decay-rate"] if constant else state.decay
    return RoundSettings(decay=float(decay), proximal_mu=float(config.get("proximal-mu", 0.0)))  # type: ignore[arg-type]


def _update_decay(state: ClientState, config: ConfigRecord, accuracy: float) -> None:
    """lambda_k <- decay_rate lambda_k if the client's result is no better than the model it started from."""
    if config.get("decay-mode") == "constant":
        return
    if "decay-rate" in config and accuracy <= config["server-accuracy"]:  # type: ignore[operator]
        state.decay *= config["decay-rate"]  # type: ignore[operator]
