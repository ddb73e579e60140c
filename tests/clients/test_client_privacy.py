"""Messages of clients under `privacy=`: clipped and noisy weights and nothing else."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.app import Client, ClientPairs, client_app
from clients.privacy import check_promise, privacy_mods
from clients.trainer import LocalTrainer
from fed.errors import Failed
from fed.grids.local import LocalGrid
from fed.model.arrays import model_tensors, snapshot, to_record, to_tensors
from fed.model.references import with_reference
from support.federations import Log, dpo_loss
from support.local_settings import local_settings
from support.pairs import examples
from support.private_rounds import SENT, UPDATES, sent_by_a_client, settings, trained_by_first


def test_a_client_under_local_privacy_sends_its_clipped_update_plus_noise_of_2_c_z() -> None:
    np.random.seed(3)
    trained = {name: SENT[name] + UPDATES[0][name] for name in SENT}
    (reply,) = sent_by_a_client(settings(kind="local_dp"), SENT, trained)
    rng = np.random.RandomState(3)
    for name, tensor in to_tensors(reply.content["arrays"]).items():
        noise = torch.tensor(rng.normal(0, 2 * 2 * 0.5, tensor.shape), dtype=torch.float32)
        torch.testing.assert_close(tensor, SENT[name] + 0.4 * UPDATES[0][name] + noise, rtol=1e-6, atol=1e-6)
    assert list(reply.content) == ["arrays", "metrics"] and dict(reply.content["metrics"]) == {"num-examples": 1}


def test_clients_that_clip_themselves_send_no_more_than_the_norm() -> None:
    trained = {name: SENT[name] + UPDATES[2][name] for name in SENT}
    (reply,) = sent_by_a_client(settings(clipping="client"), SENT, trained, {"clipping_norm": 2.0})
    for name, tensor in to_tensors(reply.content["arrays"]).items():
        torch.testing.assert_close(tensor, SENT[name] + 0.2 * UPDATES[2][name])
    assert dict(reply.content["metrics"]) == {"num-examples": 1}


@pytest.mark.parametrize("changes", [{}, {"clipping": "client"}, {"kind": "local_dp"}], ids=str)
def test_two_clients_of_different_data_differ_in_nothing_but_their_arrays(policy, changes: dict[str, str]) -> None:
    """Two clients train 6 and 9 different pairs; all messages of two rounds are compared, and of an evaluation."""
    own = settings(**changes)
    pairs = [
        ClientPairs(with_reference(policy, examples(count, seed=count), batch_size=8, cache=None, weights_hash=""))
        for count in (6, 9)
    ]
    trainer = LocalTrainer(policy, local_settings(loss=dpo_loss, optimizer="AdamW", lr=3e-3))
    pairs = [ClientPairs(pair.train, pair.train[:3], pair.train[:4]) for pair in pairs]
    app = client_app(Client(trainer, pairs, Log()), privacy_mods(own))
    grid = LocalGrid(app, [Context(0, node, {"partition-id": node}, RecordDict(), {}) for node in range(2)])
    weights = snapshot(model_tensors(policy.model))
    for server_round, kind in ((1, "train"), (2, "train"), (3, "evaluate")):
        grid.begin(server_round)
        config = ConfigRecord({"server-round": server_round, "clipping_norm": 2.0})
        record = RecordDict({"arrays": weights, "config": config})
        replies = list(grid.send_and_receive([Message(record, node, kind) for node in range(2)]))
        if kind == "evaluate" and changes:  # Flower's mods know training only
            assert all(reply.has_error() for reply in replies)
            continue
        for reply in replies:
            assert list(reply.content) == (["arrays", "metrics"] if kind == "train" else ["metrics"])
            assert dict(reply.content["metrics"]) == {"num-examples": 1}
        if kind == "train":
            first, second = (to_tensors(reply.content["arrays"]) for reply in replies)
            assert {name: (t.shape, t.dtype) for name, t in first.items()} == {
                name: (t.shape, t.dtype) for name, t in second.items()
            }
            assert not all(torch.equal(first[name], second[name]) for name in first)


def test_an_unchanged_model_is_hidden_where_the_client_trains_a_part_of_it() -> None:
    """A mod inside replaces the message's arrays by parts of them, as where processes share a model."""

    def in_parts(message: Message, context: Context, call_next: Any) -> Message:
        message.content["arrays"] = to_record({name: tensor[:1] for name, tensor in SENT.items()})
        return call_next(message, context)

    (reply,) = sent_by_a_client(settings(clipping="client"), SENT, SENT, {"clipping_norm": 2.0}, mods=[in_parts])
    tensors = to_tensors(reply.content["arrays"])
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert any(not torch.equal(tensor, SENT[name]) for name, tensor in tensors.items())


def test_a_client_keeps_arrays_of_its_own_mods_to_itself() -> None:
    app = ClientApp(mods=privacy_mods(settings()))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        own = {"arrays": to_record(SENT), "more": to_record(SENT), "metrics": MetricRecord({"num-examples": 17})}
        return Message(RecordDict(own), reply_to=message)

    LocalGrid(app, [])
    reply = app(Message(RecordDict({"arrays": to_record(SENT)}), 0, "train"), Context(0, 0, {}, RecordDict(), {}))
    assert set(reply.content) == {"arrays", "metrics"}


@pytest.mark.parametrize(
    ("run", "demanded", "words"),
    [
        ({"kind": "none"}, {}, None),
        ({"kind": "none"}, {"privacy.kind": "local_dp"}, "only with privacy=local_dp; the run has privacy=none"),
        ({"kind": "central_dp"}, {"privacy.kind": "local_dp"}, "the run has privacy=central_dp"),
        ({"kind": "local_dp"}, {"privacy.kind": "local_dp", "privacy.noise_multiplier": 1}, "=1 or more.*=0.5"),
        ({"kind": "none"}, {"privacy.noise_multiplier": 0.1}, "multiplier=0.1 or more; the run has privacy=none"),
        ({"kind": "local_dp"}, {"privacy.kind": "local_dp", "privacy.noise_multiplier": 0.5}, None),
        ({"kind": "local_dp", "seeded_noise": True}, {}, "whoever knows the seed"),
    ],
)
def test_the_owner_of_data_insists_on_a_promise(run: Any, demanded: Any, words: str | None) -> None:
    """The owner's demand decides, whatever the server says."""
    promised = settings(**{"seeded_noise": False, **run})
    if words is None:
        check_promise(promised, demanded)
        return
    with pytest.raises(Failed, match=words):
        check_promise(promised, demanded)


def test_a_trusted_server_gets_the_weights_as_they_are_and_clips_them_itself() -> None:
    (reply,) = sent_by_a_client(settings(), SENT, trained_by_first())
    assert all(torch.equal(t, trained_by_first()[n]) for n, t in to_tensors(reply.content["arrays"]).items())
