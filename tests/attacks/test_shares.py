"""What a client gains by what it says of itself: a share of the mean, which can be limited and is told."""

import math

import numpy as np
import pytest
import torch
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fed.grids.local import LocalGrid
from fed.model.arrays import to_record, to_tensors
from fed.tracking.line_files import read_lines
from fed.tracking.run_files import METRICS
from server.evaluate import ServerEvaluation
from server.strategies import FeDPO, RunningMean, StreamingFedAvg, cap_shares
from support.deployment import lines
from support.federations import Log, everyone
from support.flower_runs import nodes


@given(logs=st.lists(st.floats(-2000, 2000), min_size=1, max_size=12), most=st.floats(0.01, 1))
@settings(max_examples=400, deadline=None)
def test_shares_sum_to_one_and_none_is_above_the_limit(logs, most):
    shares = np.exp(cap_shares(logs, most))
    shares /= 1.0 if most * len(logs) > 1 else len(logs)
    assert shares.sum() == pytest.approx(1)
    assert max(shares) <= max(most, 1 / len(logs)) * (1 + 1e-9)
    order = np.argsort(logs, kind="stable")
    assert all(np.diff(shares[order]) >= -1e-12)  # who weighs more has no smaller share
    if max(usual := np.exp(np.asarray(logs) - max(logs)) / np.exp(np.asarray(logs) - max(logs)).sum()) <= most:
        assert shares == pytest.approx(usual)


def test_what_is_cut_off_goes_to_the_others_as_they_weigh():
    """Weights 70, 20, 10 at most 0.4: 0.4 and, of the other 0.6, two thirds and one third, of which 0.4 is cut anew."""
    assert np.exp(cap_shares([math.log(7), math.log(2), 0.0], 0.5)) == pytest.approx([0.5, 1 / 3, 1 / 6])
    assert np.exp(cap_shares([math.log(7), math.log(2), 0.0], 0.4)) == pytest.approx([0.4, 0.4, 0.2])


def replies(sizes):
    LocalGrid(None, [])
    found = []
    for node, size in enumerate(sizes):
        sent = Message(RecordDict(), node, "train")
        arrays = to_record({"w": torch.full((2,), float(node))})
        reported = MetricRecord({"num-examples": size, "accuracy": 0.5})
        found.append(Message(RecordDict({"arrays": arrays, "metrics": reported}), reply_to=sent))
    return found


def test_shares_that_underflow_leave_a_mean_of_numbers():
    mean = RunningMean()
    for value, log_weight in zip((1.0, 2.0, 3.0, 4.0), cap_shares([100.0, 100.0, 900.0, 900.0], 0.5), strict=True):
        mean.add({"w": torch.tensor([value])}, log_weight)
    assert mean.value["w"] == 3.5


@pytest.mark.parametrize("strategy", [StreamingFedAvg, FeDPO])
def test_a_client_that_claims_all_pairs_of_the_world_has_its_share_and_no_more(strategy):
    own = {"weighting": "samples"} if strategy is FeDPO else {}
    limited = strategy(max_client_weight=0.4, **own, **everyone())
    assert not limited.streams and strategy(**everyone()).streams
    arrays, _ = limited.aggregate_train(1, iter(replies([10**15, 10, 10, 10])))
    assert list(limited.client_weights.values()) == pytest.approx([0.4, 0.2, 0.2, 0.2])
    assert float(to_tensors(arrays)["w"][0]) == pytest.approx(0.2 * (1 + 2 + 3))


@pytest.mark.parametrize("limit", [0.0, -1.0, 1.5, math.nan])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ValueError, match=r"max_client_weight=.* is out of range"):
        StreamingFedAvg(max_client_weight=limit, **everyone())


@pytest.mark.parametrize(("shares", "told"), [([0.6, 0.2, 0.1, 0.1], 1), ([0.5, 0.2, 0.2, 0.1], 0), ([0.9, 0.1], 0)])
def test_a_majority_among_four_or_more_is_told(shares, told):
    remarks = []

    class Heard(Log):
        def remark(self, server_round, text):
            remarks.append((server_round, text))

    evaluation = ServerEvaluation(None, {}, None, Heard(), 3, client_weights=lambda: dict(enumerate(shares)))
    evaluation._log_round(1)
    assert remarks == [(1, "client 0 has 60% of the mean of 4 clients; see max_client_weight")] * told


def test_a_server_that_scores_replies_itself_does_not_believe_an_accuracy(federate, files):
    """Both say 1, which with temp=100 decides everything; a server that scores replies writes what it found."""

    def lies(reply):
        if reply.metadata.message_type == MessageType.TRAIN:
            reply.content["metrics"]["accuracy"] = 1.0

    typed = {"comm_round": 1, "temp": 100, "strategy": "fedpo"}
    _, believed = federate(nodes(files), hostile_node=lies, exp_name="believed", **typed)
    told = [line for line in read_lines(believed / METRICS) if line["split"] == "validation"]
    assert {line["accuracy"] for line in told if line["who"] != "server"} == {1}
    _, checked = federate(nodes(files), hostile_node=lies, exp_name="checked", score_on="server", **typed)
    found = {k: lines(checked)[1, f"client-{k}", "validation"]["accuracy"] for k in range(2)}
    assert max(found.values()) < 1
    weights = {k: lines(checked)[1, f"client-{k}", "aggregate"]["weight"] for k in range(2)}
    assert weights[0] / weights[1] == pytest.approx(math.exp(100 * (found[0] - found[1])), rel=1e-6)
