"""A federation whose clients are elsewhere, behind one of Flower's own grids."""

import functools
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, MessageType, MetricRecord
from flwr.serverapp import Grid

from fed.config.checks import Request
from fed.config.flower import to_text
from fed.errors import Failed
from fed.files import plain_name
from fed.grids.remote import MODEL, RUN, SETTINGS, RemoteGrid
from fed.grids.replies import Expected
from fed.grids.settings import RemoteGridSettings
from fed.grids.wire import Wire
from fed.model.arrays import load_arrays, to_tensors
from fed.model.identity import identity
from fed.simulation import serve
from fed.tracking.log import Log
from run.federation import Federation
from server.traits import raises_loss, streams

# The metrics of a client's training by split: our names, and those of its reply. With `privacy=` it sends none.
OF_A_TRAINING = {
    "train": {"loss": "train_loss", "decay": "decay", "decay_next": "decay_next"},
    "validation": {"accuracy": "accuracy"},
}
OF_AN_EVALUATION = ("accuracy", "margin", "loss")  # metrics of a client's evaluation on its own pairs


@dataclass(frozen=True)
class RemoteClients:
    """Clients behind one of Flower's own grids, and the settings that they are sent."""

    grid: Grid
    request: Request


def train_remotely(federation: Federation, clients: RemoteClients) -> ArrayRecord:
    """Run the federation's rounds with clients behind a grid of Flower's, and return the final global weights."""
    plan, config, log = federation.plan, federation.plan.config, federation.log
    settings = RemoteGridSettings(
        message_config={
            MODEL: json.dumps(identity(plan.policy, federation.model_hash)),
            RUN: plain_name("_".join(federation.place.checkpoints.parent.absolute().parts[-2:])),
            SETTINGS: to_text(clients.request),
        },
        wait=config.process_timeout,
        simulated=config.engine == "ray",
        timeout=config.client_timeout if config.engine == "flower" else None,
        expected=Expected(
            config.privacy.kind != "none",
            tuple(config.client_metrics),
            raises_loss(federation.strategy),
            plan.objective.supervised,
        ),
        score=functools.partial(_score, federation) if config.score_on == "server" else None,
        on_reply=lambda *reply: _report(log, *reply),
        wire=Wire(config.wire_dtype, to_tensors(federation.initial)),
        streams=streams(federation.strategy),
        min_fit_clients=config.min_fit_clients,
        on_failure=log.failed,
    )

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        found = federation.evaluation(server_round, arrays)
        log.end_round()  # the next report about a client may be its reply
        return found

    server = federation.server_side(evaluate, log.communication)
    return serve(server, RemoteGrid(clients.grid, settings), plan.num_clients)


def _score(federation: Federation, arrays: ArrayRecord) -> float:
    """Return the accuracy of trained weights on the server's pairs; the evaluation loads its own weights again.

    Raises:
        Failed: If the weights give log-probs that are not finite.
    """
    evaluation = federation.evaluation
    load_arrays(evaluation.policy.model, arrays)
    with federation.log.phase("evaluate"):
        found = evaluation.score(evaluation.policy, federation.pairs.validation).metrics
    if not math.isfinite(found["margin"]):
        raise Failed("its weights give log-probs that are not finite")
    return found["accuracy"]


def _report(log: Log, client_id: int, server_round: int, kind: str, metrics: Mapping[str, Any]) -> None:
    """Report the metrics of a client's reply as a client in this program would report them."""
    if kind != MessageType.TRAIN:
        log.client(
            client_id, server_round, "held-out", {name: metrics[name] for name in metrics if name in OF_AN_EVALUATION}
        )
        return
    log.start_client(server_round, client_id, metrics.get("pairs", 0))
    if "pairs" in metrics:
        log.advance(metrics["pairs"])
    for split, names in OF_A_TRAINING.items():
        if found := {ours: metrics[theirs] for ours, theirs in names.items() if theirs in metrics}:
            log.client(client_id, server_round, split, found)
