from typing import Any

import pytest

from fed.tracking.earlier_lines import as_now


def trained(server_round: int, decay: float, who: str = "client-0") -> dict[str, Any]:
    """Return the line of a client's round as it was written when `decay` was the one that the round ended with."""
    return {"round": server_round, "who": who, "split": "train", "pairs": 0, "decay": decay}


def scored(accuracy: float, who: str = "client-0") -> dict[str, Any]:
    """Return the line of a client's accuracy on validation pairs after round 1."""
    return {"round": 1, "who": who, "split": "validation", "pairs": 0, "accuracy": accuracy}


def test_the_mean_log_ratio_was_called_kl():
    [line] = as_now([{"round": 1, "who": "clients", "split": "test", "pairs": 0, "kl": -11.0, "kl_sd": 2.0}])
    assert line == {"round": 1, "who": "clients", "split": "test", "pairs": 0, "log_ratio": -11.0, "log_ratio_sd": 2.0}


def test_a_standard_error_of_0_becomes_wilsons_interval():
    place = {"round": 1, "who": "server", "split": "test", "pairs": 0}
    [line] = as_now([{**place, "accuracy": 1.0, "accuracy_se": 0.0, "examples": 32}])
    assert line == {**place, "accuracy": 1.0, "examples": 32, "accuracy_low": pytest.approx(0.893, abs=1e-3)} | {
        "accuracy_high": 1.0
    }
    [line] = as_now([{**place, "accuracy": None, "accuracy_se": None, "examples": 32}])
    assert line == {**place, "accuracy": None, "examples": 32}


def test_decay_was_the_one_that_a_round_ended_with():
    """Client 1 joins in round 3, and has not decayed when it does."""
    lines = [trained(1, 1.0), trained(2, 0.5), trained(3, 0.5, "client-1"), trained(3, 0.25)]
    found = list(as_now(lines))
    assert [line["decay"] for line in found] == [1.0, 1.0, 1.0, 0.5]
    assert [line["decay_next"] for line in found] == [1.0, 0.5, 0.5, 0.25]


def test_a_constant_decay_was_in_force_from_the_first_round():
    """No client that ranks a pair correctly could decay in round 1: it was compared with an accuracy of 0."""
    lines = [trained(1, 0.5), scored(0.25), trained(2, 0.5), trained(2, 0.5, "client-1")]
    assert [line["decay"] for line in as_now(lines) if line["split"] == "train"] == [0.5] * 3


def test_a_client_that_ranked_no_pair_correctly_decayed_in_the_first_round():
    lines = [trained(1, 0.5), scored(0.0), trained(1, 1.0, "client-1"), scored(0.5, "client-1")]
    lines += [trained(2, 0.5), trained(3, 0.25)]
    found = [line["decay"] for line in as_now(lines) if line["split"] == "train" and line["who"] == "client-0"]
    assert found == [1.0, 0.5, 0.5]


def test_lines_of_today_stay_as_they_are():
    lines = [
        {**trained(1, 0.5), "decay_next": 0.25, "accuracy": 0.5, "ties": 0.25, "examples": 8},
        {
            "round": 1,
            "who": "server",
            "split": "test",
            "pairs": 8,
            "accuracy": 0.5,
            "accuracy_low": 0.1,
            "log_ratio": 0.0,
        },
    ]
    assert list(as_now([dict(line) for line in lines])) == lines
