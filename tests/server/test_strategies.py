import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from hypothesis import given
from hypothesis import strategies as st

from fed.grids.local import LocalGrid
from fed.model.arrays import to_record, to_tensors
from server.strategies import FeDPO, RunningMean, StreamingFedAvg


@pytest.fixture(autouse=True)
def grid() -> LocalGrid:
    """Make a grid: `Message()` needs the identity that it sets."""
    return LocalGrid(lambda message, context: message, [])


def reply(node: int, weights: dict[str, torch.Tensor], **metrics: float) -> Message:
    sent = Message(RecordDict(), node, "train")
    records = {"arrays": to_record(weights), "metrics": MetricRecord({"num-examples": 1, "accuracy": 0.5} | metrics)}
    return Message(RecordDict(records), reply_to=sent)


def replies(thetas, accuracies, sizes=None) -> list[Message]:
    sizes = sizes or [1] * len(thetas)
    return [
        reply(node, {"w": theta}, accuracy=accuracy, **{"num-examples": size})
        for node, (theta, accuracy, size) in enumerate(zip(thetas, accuracies, sizes, strict=True))
    ]


def aggregate(strategy, messages) -> dict[str, torch.Tensor]:
    arrays, _ = strategy.aggregate_train(1, messages)
    return to_tensors(arrays)


THETAS = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, -2.0]), torch.tensor([0.5, 8.0])]
ACCURACIES = [0.6, 0.7, 0.4]


def test_fedpo_weights_are_the_softmax_of_temp_times_accuracy():
    """At temp 2 the weights are exp(1.2), exp(1.4), exp(0.8) = 3.3201, 4.0552, 2.2255; their sum is 9.6008."""
    strategy = FeDPO(temp=2.0, min_train_nodes=1)
    found = aggregate(strategy, replies(THETAS, ACCURACIES))["w"]
    weights = list(strategy.client_weights.values())
    assert weights == pytest.approx([0.345815, 0.422379, 0.231806], abs=1e-6)
    assert sum(weights) == pytest.approx(1.0, abs=1e-12)
    expected = sum(w * theta for w, theta in zip(weights, THETAS, strict=True))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_weights_of_a_quarter_and_three_quarters_give_the_hand_computation():
    """Accuracies 0 and 1 weigh 1/4 and 3/4 at temp = ln 3: (1/4)1 + (3/4)3 = 2.5, (1/4)2 - (3/4)2 = -1."""
    found = aggregate(FeDPO(temp=math.log(3)), replies(THETAS[:2], [0.0, 1.0]))["w"]
    torch.testing.assert_close(found, torch.tensor([2.5, -1.0]))


def test_equal_accuracies_and_temp_zero_both_give_the_plain_mean():
    mean = torch.stack(THETAS).mean(0)
    torch.testing.assert_close(aggregate(FeDPO(temp=50.0), replies(THETAS, [0.6] * 3))["w"], mean)
    torch.testing.assert_close(aggregate(FeDPO(temp=0.0), replies(THETAS, ACCURACIES))["w"], mean)


def test_a_single_client_is_returned_bit_for_bit():
    theta = torch.randn(1000) / 3
    assert torch.equal(aggregate(FeDPO(temp=0.1), replies([theta], [0.77]))["w"], theta)


def test_a_huge_temp_picks_the_best_client_without_overflow():
    found = aggregate(FeDPO(temp=1e6), replies(THETAS, ACCURACIES))["w"]
    torch.testing.assert_close(found, THETAS[1])


def test_weighting_by_samples_is_flowers_fedavg():
    sizes = [3, 5, 11]
    ours = aggregate(FeDPO(weighting="samples", temp=9.0), replies(THETAS, ACCURACIES, sizes))["w"]
    theirs = aggregate(FedAvg(), replies(THETAS, ACCURACIES, sizes))["w"]
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_weighting_by_both_multiplies_the_two():
    strategy = FeDPO(weighting="accuracy_times_samples", temp=2.0)
    aggregate(strategy, replies(THETAS, ACCURACIES, [3, 5, 11]))
    raw = np.exp(2.0 * np.array(ACCURACIES)) * np.array([3, 5, 11])
    assert list(strategy.client_weights.values()) == pytest.approx(list(raw / raw.sum()))


def test_streaming_fedavg_gives_flowers_arrays_and_metrics():
    sizes = [7, 1, 2]
    ours_arrays, ours = StreamingFedAvg().aggregate_train(1, iter(replies(THETAS, ACCURACIES, sizes)))
    arrays, theirs = FedAvg().aggregate_train(1, replies(THETAS, ACCURACIES, sizes))
    np.testing.assert_allclose(ours_arrays["w"].numpy(), arrays["w"].numpy(), rtol=1e-6)
    assert dict(ours) == pytest.approx(dict(theirs))


def test_streaming_keeps_one_reply_alive_at_a_time():
    alive, most = 0, 0

    class Counted(Array):
        def __init__(self, array: Array) -> None:
            nonlocal alive, most
            self.__dict__.update(array.__dict__)
            alive, most = alive + 1, max(most, alive + 1)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def stream():
        for node in range(8):
            message = reply(node, {})
            message.content["arrays"] = ArrayRecord({"w": Counted(Array(np.full(3, node, dtype=np.float32)))})
            yield message
            del message

    found = aggregate(FeDPO(temp=0.0), stream())["w"]
    torch.testing.assert_close(found, torch.full((3,), 3.5))
    assert most <= 2


def test_nobody_answering_gives_no_aggregate():
    assert FeDPO().aggregate_train(1, iter([])) == (None, None)


def test_replies_of_different_shapes_or_names_are_refused():
    for other in ({"w": torch.zeros(3)}, {"v": torch.zeros(2)}):
        with pytest.raises(ValueError, match="different names or shapes"):
            FeDPO().aggregate_train(1, [reply(0, {"w": torch.zeros(2)}), reply(1, other)])


def test_aggregation_leaves_the_replies_as_they_came():
    messages = replies(THETAS, ACCURACIES)
    aggregate(FeDPO(temp=3.0), messages)
    for message, theta in zip(messages, THETAS, strict=True):
        assert torch.equal(to_tensors(message.content["arrays"])["w"], theta)
    torch.testing.assert_close(THETAS[0], torch.tensor([1.0, 2.0]))


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-100, 100)), min_size=1, max_size=8))
def test_the_running_mean_is_the_weighted_mean(members):
    mean = RunningMean()
    for theta, log_weight in members:
        mean.add({"w": torch.tensor([theta])}, log_weight)
    logs = np.array([log_weight for _, log_weight in members])
    weights = np.exp(logs - logs.max()) / np.exp(logs - logs.max()).sum()
    expected = float((weights * np.array([theta for theta, _ in members])).sum())
    assert float(mean.value["w"]) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert mean.weights() == pytest.approx(list(weights))


def test_clients_are_told_to_decay_only_when_there_is_something_to_decay():
    for strategy, told in (
        (FeDPO(decay_rate=0.995), {"decay-rate": 0.995, "decay-mode": "cumulative"}),
        (FeDPO(decay_rate=0.9, decay="constant"), {"decay-rate": 0.9, "decay-mode": "constant"}),
        (FeDPO(decay_rate=1.0), {}),
        (StreamingFedAvg(), {}),
    ):
        grid = LocalGrid(lambda message, context: message, [None, None])
        config = ConfigRecord()
        list(strategy.configure_train(1, ArrayRecord(), config, grid))
        assert {key: value for key, value in config.items() if key.startswith("decay")} == told


def test_values_out_of_range_are_refused():
    for bad, message in (
        ({"weighting": "size"}, "accuracy_times_samples"),
        ({"decay_rate": 0.0}, "0 < decay_rate <= 1"),
        ({"decay_rate": 1.01}, "0 < decay_rate <= 1"),
        ({"decay": "never"}, "cumulative or constant"),
        ({"temp": math.nan}, "out of range"),
    ):
        with pytest.raises(ValueError, match=message):
            FeDPO(**bad)
