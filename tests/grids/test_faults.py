"""Simulated failures, number by number."""

import math
from typing import Any

import pytest
import torch
from flwr.app import Message, MetricRecord, RecordDict

from fed.config.groups import FaultSettings
from fed.distributed.ranks import arrange
from fed.errors import Failed
from fed.grids.faults import Faults
from fed.grids.local import LocalGrid
from fed.grids.replies import check_reply
from fed.model.arrays import to_record, to_tensors
from fed.seeding import generator
from support.ranks import in_ranks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def grid() -> LocalGrid:
    """`Message()` needs the identity that a grid sets."""
    return LocalGrid(lambda message, context: message, [])


def reply(content: dict[str, Any]) -> Message:
    return Message(RecordDict(content), reply_to=Message(RecordDict(), 0, "train"))


def answer(values: list[float]) -> Message:
    return reply({"arrays": to_record({"w": torch.tensor(values)}), "metrics": MetricRecord({"loss": 0.5})})


SENT = {"arrays": {"w": torch.tensor([1.0, -2.0])}}


def reason(faults: Faults, client_id: int, server_round: int) -> str | None:
    try:
        faults.before(client_id, server_round)
    except Failed as failed:
        return str(failed)
    return None


def spoiled(faults: Faults, client_id: int, server_round: int, values: list[float] | None = None) -> list[float]:
    """Return what becomes of a client's answer to [1, -2]."""
    message = answer(values or [3.0, -3.0])
    faults.after(client_id, server_round, SENT, message)
    return to_tensors(message.content.array_records["arrays"])["w"].tolist()


PLACES = [(client, server_round) for client in range(100) for server_round in range(1, 21)]


# Clients that do not come to train


def test_rates_of_zero_and_one_are_never_and_always() -> None:
    never = Faults(FaultSettings(straggler_seconds=1e9), client_timeout=0.0)
    always = Faults(FaultSettings(dropout_rate=1.0))
    assert {reason(never, *place) for place in PLACES[:300]} == {None}
    assert {reason(always, *place) for place in PLACES[:300]} == {"simulated dropout"}


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_clients_drop_out_as_often_as_the_rate_says(rate: float) -> None:
    """2,000 draws: the standard deviation of the frequency is at most sqrt(0.25 / 2000) = 0.011."""
    faults = Faults(FaultSettings(dropout_rate=rate))
    found = [reason(faults, *place) is not None for place in PLACES]
    assert sum(found) / len(found) == pytest.approx(rate, abs=0.04)
    by_client = [sum(found[20 * client : 20 * client + 20]) for client in range(100)]
    assert len(set(by_client)) > 3  # it is not always the same clients


def test_who_fails_depends_on_seed_client_and_round_only() -> None:
    settings = FaultSettings(dropout_rate=0.5, nan_rate=0.5)

    def who(seed: int, places: list[tuple[int, int]]) -> dict[tuple[int, int], tuple[bool, bool]]:
        faults = Faults(settings, seed=seed)
        return {p: (reason(faults, *p) is not None, math.isnan(spoiled(faults, *p)[0])) for p in places}

    places = PLACES[:200]
    first = who(0, places)
    assert who(0, places[::-1]) == first and who(0, places[5:8]) == {place: first[place] for place in places[5:8]}
    assert who(1, places) != first
    assert set(first.values()) == {(a, b) for a in (True, False) for b in (True, False)}  # drawn apart


def test_a_straggler_is_left_out_if_its_delay_is_longer_than_the_timeout() -> None:
    """Delays are exponential of mean 10: longer than 5 with probability exp(-1/2) = 0.607, half of clients: 0.303."""
    settings = FaultSettings(straggler_rate=0.5, straggler_seconds=10.0)
    faults = Faults(settings, client_timeout=5.0)
    found = [reason(faults, *place) for place in PLACES]
    late = [text for text in found if text is not None]
    assert len(late) / len(found) == pytest.approx(0.5 * math.exp(-0.5), abs=0.04)
    assert all(
        text.startswith("simulated delay of ") and text.endswith(" s, more than client_timeout=5") for text in late
    )
    seconds = [int(text.split()[3]) for text in late]
    # What is beyond 5 is exponential again: mean 15.
    assert min(seconds) >= 5 and sum(seconds) / len(seconds) == pytest.approx(15, abs=1.5)


def test_nobody_is_late_without_a_timeout_or_without_a_delay() -> None:
    for faults in (
        Faults(FaultSettings(straggler_rate=1.0, straggler_seconds=1e9), client_timeout=None),
        Faults(FaultSettings(straggler_rate=1.0, straggler_seconds=0.0), client_timeout=0.001),
    ):
        assert {reason(faults, *place) for place in PLACES[:300]} == {None}


def test_the_delay_is_the_inverse_of_the_exponential_distribution() -> None:
    """u = 1 - exp(-t / mean) at the third number drawn: t = -mean ln(1 - u)."""
    faults = Faults(FaultSettings(straggler_rate=1.0, straggler_seconds=100.0), client_timeout=1e-9, seed=4)
    u = generator(4, "faults", 7, 3).random(3)[2]
    assert reason(faults, 7, 3) == f"simulated delay of {-100 * math.log(1 - u):.0f} s, more than client_timeout=1e-09"


def test_a_client_that_drops_out_is_not_called_late() -> None:
    both = FaultSettings(dropout_rate=1.0, straggler_rate=1.0, straggler_seconds=1e9)
    assert reason(Faults(both, client_timeout=1.0), 0, 1) == "simulated dropout"


def test_one_failure_does_not_move_the_draws_of_another() -> None:
    """The same clients drop out whether or not there are stragglers or spoiled replies too."""
    alone = Faults(FaultSettings(dropout_rate=0.3))
    beside = Faults(FaultSettings(0.3, straggler_rate=0.5, straggler_seconds=1e9, nan_rate=0.5), client_timeout=1.0)
    drops = [reason(beside, *place) == "simulated dropout" for place in PLACES[:300]]
    assert drops == [reason(alone, *place) is not None for place in PLACES[:300]]


# Replies that are spoiled


def test_a_byzantine_client_sends_the_opposite_of_what_it_learned() -> None:
    """From [1, -2] to [3, -3] it learned [2, -1]: 1 - 10 x 2 = -19 and -2 - 10 x -1 = 8; at scale 0.5, 0 and -1.5."""
    faults = Faults(FaultSettings(byzantine_clients=2))
    assert [spoiled(faults, client, 1) for client in range(4)] == [[-19, 8], [-19, 8], [3, -3], [3, -3]]
    assert spoiled(Faults(FaultSettings(byzantine_clients=1, byzantine_scale=0.5)), 0, 1) == [0, -1.5]


def test_what_was_sent_and_the_metrics_stay_as_they_are() -> None:
    received, message = {"arrays": {"w": torch.tensor([1.0, -2.0])}}, answer([3.0, -3.0])
    tensor = to_tensors(message.content.array_records["arrays"])["w"]
    Faults(FaultSettings(byzantine_clients=1, nan_rate=1.0)).after(0, 1, received, message)
    assert received["arrays"]["w"].tolist() == [1, -2] and tensor.tolist() == [3, -3]
    assert dict(message.content["metrics"]) == {"loss": 0.5}


def test_every_record_is_spoiled_by_its_own_name() -> None:
    sent = {"a": {"w": torch.zeros(1)}, "b": {"w": torch.ones(1), "v": torch.ones(1)}}
    message = reply({"a": to_record({"w": torch.ones(1)}), "b": to_record({"v": torch.ones(1), "w": torch.zeros(1)})})
    Faults(FaultSettings(byzantine_clients=1, byzantine_scale=2.0)).after(0, 1, sent, message)
    found = {key: {n: t.tolist() for n, t in to_tensors(r).items()} for key, r in message.content.array_records.items()}
    assert found == {"a": {"w": [-2]}, "b": {"v": [1], "w": [3]}}  # 0 - 2(1 - 0), 1 - 2(1 - 1), 1 - 2(0 - 1)
    assert list(found["b"]) == ["v", "w"]


def test_a_spoiled_reply_is_not_a_number_anywhere_as_often_as_the_rate_says() -> None:
    always, half = Faults(FaultSettings(nan_rate=1.0)), Faults(FaultSettings(nan_rate=0.25))
    assert all(map(math.isnan, spoiled(always, 3, 1)))
    found = [spoiled(half, *place) for place in PLACES]
    assert {tuple(map(math.isnan, values)) for values in found} == {(True, True), (False, False)}
    assert sum(math.isnan(values[0]) for values in found) / len(found) == pytest.approx(0.25, abs=0.04)
    assert next(values for values in found if not math.isnan(values[0])) == [3, -3]


def test_no_failures_leave_a_reply_as_it_is() -> None:
    assert all(spoiled(Faults(FaultSettings()), *place) == [3, -3] for place in PLACES[:100])


def test_a_spoiled_reply_keeps_shape_and_precision_and_is_found() -> None:
    sent = {"arrays": {"w": torch.zeros(2, 3, dtype=torch.float64)}}
    message = reply({"arrays": to_record({"w": torch.ones(2, 3, dtype=torch.float64)})})
    Faults(FaultSettings(nan_rate=1.0)).after(0, 1, sent, message)
    (found,) = to_tensors(message.content.array_records["arrays"]).values()
    assert (found.shape, found.dtype) == ((2, 3), torch.float64)
    with pytest.raises(Failed, match=r"^its w is not finite$"):
        check_reply(sent, message)


def test_a_byzantine_client_may_answer_with_more_than_it_was_sent() -> None:
    """A mod sends control variates, for example; an array without a counterpart stays as it is."""
    message = answer([3.0, -3.0])
    message.content["more"] = to_record({"c": torch.ones(1)})
    Faults(FaultSettings(byzantine_clients=1)).after(0, 1, SENT, message)
    assert to_tensors(message.content.array_records["arrays"])["w"].tolist() == [-19, 8]
    assert to_tensors(message.content.array_records["more"])["c"].tolist() == [1]


def test_a_byzantine_client_whose_names_are_wrong_fails_for_that() -> None:
    message = reply({"arrays": to_record({"v": torch.ones(2)})})
    Faults(FaultSettings(byzantine_clients=1)).after(0, 1, SENT, message)
    with pytest.raises(Failed, match="other names"):
        check_reply(SENT, message)


# Several processes


def spoiled_parts() -> list[float | None]:
    """Return which of a client's parts are spoiled, over 8 rounds."""
    own = arrange(1, CPU).own
    faults = Faults(FaultSettings(dropout_rate=0.5, nan_rate=0.5))
    failed = [reason(faults, 3, server_round) is not None for server_round in range(8)]
    return [*failed, *(math.isnan(spoiled(faults, 3, r, [own.index + 1.0, 0.0])[0]) for r in range(8))]


def test_processes_of_one_client_draw_the_same_failures() -> None:
    first, second = in_ranks(2, spoiled_parts)
    assert first == second and set(first[:8]) == set(first[8:]) == {True, False}
