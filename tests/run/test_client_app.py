"""Tests of a client behind Flower's engines: every message is read, and nothing but the answer leaves the client."""

import builtins
import json
import re
import sys

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from safetensors.torch import load_file

from fed.errors import CannotContinue
from fed.model.demo import demo_model, demo_tokenizer
from fed.seeding import seeded_globals
from support.deployment import lines
from support.flower_runs import allowing, nodes

# The metrics that docs/deployment.md names.
TOLD = {
    "query": {"partition-id"},
    "train": {"num-examples", "pairs", "train_loss", "accuracy", "decay", "decay_next"},
    "evaluate": {"num-examples", "accuracy", "margin", "loss"},
}


def test_only_parameters_and_the_documented_metrics_leave_a_client(federate, files):
    grid, run = federate(nodes(files), **{"strategy.fraction_evaluate": 1.0})
    kinds = [kind for kind, _, _ in grid.received]
    assert (kinds.count("query"), kinds.count("train"), kinds.count("evaluate")) == (2, 4, 4)
    weights = {name for name, _ in demo_model(demo_tokenizer()).named_parameters()}
    for kind, _, reply in grid.received:
        records = {key: type(record) for key, record in reply.content.items()}
        expected = {"metrics": MetricRecord, **({"arrays": ArrayRecord} if kind == "train" else {})}
        assert records == expected, kind
        metrics = reply.content.metric_records["metrics"]
        assert set(metrics) == TOLD[kind]
        assert all(isinstance(value, int | float) for value in metrics.values())
        if kind == "train":
            assert set(reply.content.array_records["arrays"]) <= weights
    texts = {text for path in files for text in re.findall(r"[A-Za-z ]{12,}", path.read_text())}
    assert len(texts) > 50
    for _, content, _ in grid.received:
        assert not any(text.encode() in content for text in texts)
    assert (2, "server", "test") in lines(run)


def test_with_local_privacy_nothing_but_noisy_weights_leaves_a_client(federate, files):
    """The noise is drawn anew, though the seed is the same."""
    private = {"privacy": "local_dp", "strategy": "fedavg", "comm_round": 2}
    grid, run = federate(nodes(files), **private)
    for kind, _, reply in grid.received:
        if kind == "train":
            assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 1}
            assert list(reply.content) == ["arrays", "metrics"]
    spent = [lines(run)[number, "server", "privacy"]["epsilon"] for number in (1, 2)]
    assert 0 < spent[0] < spent[1]
    _, again = federate(nodes(files), exp_name="again", **private)
    weights = [load_file(each / "policy" / "model.safetensors") for each in (run, again)]
    assert all((tensor - weights[1][name]).abs().max() > 1e-3 for name, tensor in weights[0].items())


def test_the_secret_of_flowers_own_programs_is_not_in_the_run_folder(federate, files, monkeypatch):
    secret = "0123456789abcdef"
    monkeypatch.setattr(sys, "argv", ["flwr-serverapp", "--token", secret, "--insecure"])
    _, run = federate(nodes(files), comm_round=1)
    assert json.loads((run / "environment.json").read_text())["argv"][1:] == ["--token", "...", "--insecure"]
    assert not [path for path in run.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def test_a_client_that_is_promised_too_little_stays_away(federate, files, capfd):
    first, second = nodes(files)
    insists = {**second, "privacy.kind": "local_dp", "privacy.noise_multiplier": 2.0}
    with pytest.raises(CannotContinue, match="1 online, 1 cannot take part"):
        federate([first, insists], process_timeout=2, min_fit_clients=2)
    assert "takes part only with privacy=local_dp" in capfd.readouterr().out
    federate([first, insists], privacy="local_dp", strategy="fedavg", comm_round=1, **{"privacy.noise_multiplier": 2})
    assert "privacy: local_dp, updates clipped to 1, noise multiplier 2: epsilon 2.17" in capfd.readouterr().err


def test_what_a_real_client_draws_nobody_can_draw_again(federate, files, monkeypatch):
    drawn = []
    monkeypatch.setattr("builtins.drawn", drawn, raising=False)
    federate(allowing("client_mods: [test_client_app.draws]", files), client_mods="[test_client_app.draws]")
    assert len(drawn) == 4 and len(set(drawn)) == 4


def draws(message, context, call_next):
    """Record what a mod draws."""
    builtins.drawn.append((np.random.normal(), float(torch.randn(()))))
    return call_next(message, context)


def test_what_an_error_says_of_the_data_stays_at_the_client(federate, files, capfd):
    secret = "the patient's name is Ada"
    files[1].write_text(json.dumps({"prompt": secret, "chosen": 5, "rejected": secret}) + "\n")
    with pytest.raises(CannotContinue, match="1 cannot take part"):
        federate(nodes(files), process_timeout=2, min_fit_clients=2)
    files[1].write_text(json.dumps({secret: secret}) + "\n")
    with pytest.raises(CannotContinue, match="1 cannot take part"):
        federate(nodes(files), process_timeout=2, min_fit_clients=2)
    out, err = capfd.readouterr()
    assert secret in err  # the client's own console
    assert secret not in out and "log of its SuperNode says more" in out


def test_a_client_of_another_model_is_left_out_and_told_so(federate, files, tmp_path, capfd):
    """The other clients wait for it until the time is up, because it may be started again."""
    torch.manual_seed(1)
    folder, tokenizer = tmp_path / "another", demo_tokenizer()
    demo_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    first, second = nodes(files)
    with pytest.raises(CannotContinue, match="1 online, 1 cannot take part"):
        federate([first, {**second, "model.name_or_path": str(folder)}], process_timeout=3, min_fit_clients=2)
    out, err = capfd.readouterr()
    assert "this client's model is not the server's" in err and "model.name_or_path" in err
    assert "this client's model is not the server's: the SHA-256 of its weights is" in out


@pytest.mark.parametrize(("part", "lora"), [("configuration", 0), ("tokenizer", 0), ("adapter before training", 2)])
def test_the_same_weights_are_not_the_same_model(federate, files, tmp_path, capfd, part, lora):
    """The weights are the demo's own, read from a directory; an adapter is then drawn from another place."""
    folder, tokenizer = tmp_path / "same", demo_tokenizer()
    with seeded_globals(0, "model"):
        model = demo_model(tokenizer)
    if part == "configuration":
        model.config.rms_norm_eps = 0.5
    if part == "tokenizer":
        tokenizer.eos_token = "a"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    first, second = nodes(files)
    with pytest.raises(CannotContinue, match="1 online, 1 cannot take part"):
        settings = {"process_timeout": 3, "min_fit_clients": 2, "lora.r": lora} if lora else {"process_timeout": 3}
        federate([first, {**second, "model.name_or_path": str(folder)}], **{"min_fit_clients": 2, **settings})
    assert f"the SHA-256 of its {part} is" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("change", "run", "words"),
    [
        ({"data": None}, {}, ["this node has no data", "--node-config"]),
        ({"data": "nowhere.jsonl"}, {}, ["there is no file nowhere.jsonl"]),
        ({"dataset": "demo"}, {}, ["made in code"]),
        ({"dataset": "jsnl"}, {}, ["no data set 'jsnl'", "nearest: jsonl"]),
        ({"lr": 0.1}, {}, ["--node-config has lr", "a node may set only data, dataset, policy, "]),
        ({"num_threads": "many"}, {}, ["--node-config: num_threads"]),
        ({}, {"partition": "iid", "accuracy_on": "server"}, ["data of its own", "partition=own"]),
    ],
    ids=lambda value: str(value),
)
def test_what_is_wrong_at_a_node_is_said_there_in_one_line(federate, files, capfd, change, run, words):
    first, second = nodes(files)
    if run:
        first = second = {**second, "partition-id": 0}
    node = {key: value for key, value in {**second, **change}.items() if value is not None}
    with pytest.raises(CannotContinue, match="cannot take part"):
        federate([first, node], process_timeout=3, min_fit_clients=1 if run else 2, **run)
    err = capfd.readouterr().err
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert told and all(word in told[-1] for word in words), err
    assert "Traceback" not in err


def test_the_others_go_on_without_a_node_that_cannot_take_part(federate, files, capfd):
    first, second = nodes(files)
    _, run = federate([first, {**second, "data": "nowhere.jsonl"}], process_timeout=3, client_num_in_total=2)
    assert "1 of 2 clients are online; continuing without the others" in capfd.readouterr().out
    found = lines(run)
    assert (2, "client-0", "train") in found and (2, "client-1", "train") not in found
