"""Tests of the modes without a federation: they train as many pairs as one, and read the same test pairs."""

import json

import pytest

from support.command_line import CommandLine, Result

SMALL = ("client_num_in_total=3", "comm_round=3", "n_train_examples=36", "n_test_examples=8")
BATCH = "batch_size=8"


def pairs(result: Result, who: str = "server") -> list[int]:
    return [line["pairs"] for line in result.lines(who, "test")]


@pytest.mark.parametrize(
    "length",
    [
        (BATCH,),
        (BATCH, "local_epochs=2"),
        (BATCH, "local_steps=1"),  # of 11 pairs: 8, 3, 8
        (BATCH, "local_steps=3", "reshuffle=false"),
        ("max_tokens_per_step=300",),
        (BATCH, "clients_per_round=2", "partition=size"),
        (BATCH, "clients_per_round=1", "partition=size", "local_steps=1"),
    ],
    ids=" ".join,
)
def test_centralised_training_sees_as_many_pairs_in_each_round_as_the_federation(
    command_line: CommandLine, length: tuple[str, ...]
) -> None:
    federated = command_line(*SMALL, *length)
    centralized = command_line(*SMALL, *length, "mode=centralized")
    found = pairs(federated)
    assert pairs(centralized) == found and len(set(found)) == 4
    tests = [json.loads((result.run / "partition.json").read_text())["test"] for result in (federated, centralized)]
    assert tests[0] == tests[1] and len(tests[0]["pairs"]) == 8 == len(set(tests[0]["pairs"]))


def test_clients_alone_see_together_as_many_pairs_as_the_federation(command_line: CommandLine) -> None:
    typed = (*SMALL, BATCH, "partition=size", "local_steps=1")
    federated, alone = command_line(*typed), command_line(*typed, "mode=local")
    assert pairs(alone, "clients") == pairs(federated)
    last = [alone.lines(f"client-{k}", "test")[-1] for k in range(3)]
    mean = alone.lines("clients", "test")[-1]
    assert mean["accuracy"] == pytest.approx(sum(line["accuracy"] for line in last) / 3, rel=1e-12)
    variance = sum((line["accuracy"] - mean["accuracy"]) ** 2 for line in last) / 2
    assert mean["accuracy_sd"] == pytest.approx(variance**0.5, abs=1e-12)
    summary = json.loads((alone.run / "summary.json").read_text())
    assert summary["final"]["test"]["accuracy"] == mean["accuracy"]


def test_only_a_federation_sends_anything(command_line: CommandLine) -> None:
    """Two rounds with three clients send all weights in float32 each way."""
    typed = ("client_num_in_total=3", "comm_round=2", "n_train_examples=40", "n_test_examples=8")
    federated, centralized = command_line(*typed), command_line(*typed, "mode=centralized")
    lines = federated.lines("server", "communication")
    parameters = sum(p.numel() for p in _weights(federated))
    assert [line["bytes_sent"] for line in lines] == [3 * 4 * parameters] * 2
    assert [line["bytes_received"] for line in lines] == [3 * 4 * parameters] * 2
    total = json.loads((federated.run / "summary.json").read_text())["bytes"]
    assert total == {"sent": 24 * parameters, "received": 24 * parameters}
    assert centralized.lines("server", "communication") == []
    assert "bytes" not in json.loads((centralized.run / "summary.json").read_text())


def test_an_adapter_is_all_that_travels(command_line: CommandLine) -> None:
    result = command_line(
        "client_num_in_total=2", "comm_round=1", "n_train_examples=40", "n_test_examples=8", "lora.r=2"
    )
    from safetensors.torch import load_file

    adapter = sum(t.numel() for t in load_file(result.run / "policy" / "adapter_model.safetensors").values())
    (line,) = result.lines("server", "communication")
    assert line["bytes_sent"] == 2 * 4 * adapter


def _weights(result: Result) -> list:  # type: ignore[type-arg]
    from transformers import AutoModelForCausalLM

    return list(AutoModelForCausalLM.from_pretrained(result.run / "policy").parameters())
