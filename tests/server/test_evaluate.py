"""The server's evaluation: the accuracy that it tells the clients."""

import pytest
from flwr.app import ConfigRecord

from fed.model.arrays import model_tensors, snapshot
from fed.model.evaluation import Evaluation
from fed.tracking.log import Log
from server.evaluate import ServerEvaluation


def test_the_server_accuracy_reaches_clients_through_the_config_record(policy):
    evaluation = ServerEvaluation(
        policy,
        {"validation": [1]},
        lambda *_: Evaluation({"accuracy": 0.75, "log_ratio": 0.0}, []),
        Log(),
        num_rounds=2,
        train_config=ConfigRecord(),
    )
    evaluation(0, snapshot(model_tensors(policy.model)))
    assert evaluation.train_config["server-accuracy"] == 0.75


@pytest.mark.parametrize(("name", "accuracy"), [("validation", 0.25), ("test", 0.75)])
def test_clients_hear_the_accuracy_on_the_pairs_that_they_are_scored_on(policy, name, accuracy):
    """Round 0 is evaluated on all pairs, round 1 of 4 on those pairs only."""
    scored = []

    def score(_, pairs):
        scored.append(pairs)
        return Evaluation({"accuracy": {"v": 0.25, "t": 0.75}[pairs], "log_ratio": 0.0}, [])

    evaluation = ServerEvaluation(
        policy, {"validation": "v", "test": "t"}, score, Log(), 4, 4, accuracy_on=name, always_accuracy=True
    )
    for server_round in (0, 1):
        evaluation(server_round, snapshot(model_tensors(policy.model)))
        assert evaluation.train_config["server-accuracy"] == accuracy
    assert scored == ["v", "t", name[0]]
