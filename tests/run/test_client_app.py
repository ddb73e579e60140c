"""Tests of a client behind Flower's engines: every message is read, and nothing but the answer leaves the client."""

import builtins
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord
from safetensors.torch import load_file

from fed.config.checks import Request
from fed.config.flower import run_settings
from fed.config.schema import Config
from fed.errors import CannotContinue
from fed.model.demo import demo_model, demo_tokenizer
from fed.seeding import seeded_globals
from load_data import load
from run import client_app, server_app
from run.resume import resumed
from support.configured import through_flower
from support.deployment import lines
from support.flower_grid import FlowerGrid

# The metrics that docs/deployment.md names.
TOLD = {
    "query": {"partition-id"},
    "train": {"num-examples", "pairs", "train_loss", "accuracy", "decay"},
    "evaluate": {"num-examples", "accuracy", "margin", "loss"},
}
SMALL = {"client_num_in_total": 2, "comm_round": 2, "num_threads": 1, "n_test_examples": 16, "n_eval_examples": 16}
OWN = {**SMALL, "partition": "own", "accuracy_on": "client"}


@pytest.fixture
def files(tmp_path):
    """Write the own pairs of two clients."""
    rows = load(["demo"], "train", data_dir=None, seed=0).rows
    paths = [tmp_path / name for name in ("one.jsonl", "two.jsonl")]
    for number, path in enumerate(paths):
        own = rows[number * 20 : (number + 1) * 20]
        records = ({"prompt": r.prompt, "chosen": r.chosen, "rejected": r.rejected} for r in own)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return paths


@pytest.fixture
def federate(tmp_path, monkeypatch):
    """Run a federation over nodes with these configurations, and return the grid and the run's folder."""
    monkeypatch.setattr("run.experiment.curves", lambda run_dir: run_dir / "curves.png")
    monkeypatch.chdir(tmp_path)

    def run(nodes, **config):
        given = {**OWN, "output_dir": str(tmp_path / "runs"), "cache_dir": str(tmp_path / "server"), **config}
        nodes = [{"cache_dir": str(tmp_path / f"cache-{k}"), **node} for k, node in enumerate(nodes)]
        grid = FlowerGrid([(client_app.flower_app(), node) for node in nodes], given)
        threads = torch.get_num_threads()
        try:
            server_app.run(run_settings(through_flower(given)), grid)
        finally:
            torch.set_num_threads(threads)
        return grid, max(Path(tmp_path / "runs").glob("*/*"), key=lambda run: run.stat().st_mtime_ns)

    return run


def nodes(files):
    return [{"data": str(path), "partition-id": number} for number, path in enumerate(files)]


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
    assert "takes part with privacy=local_dp only" in capfd.readouterr().out
    federate([first, insists], privacy="local_dp", strategy="fedavg", comm_round=1, **{"privacy.noise_multiplier": 2})
    assert "privacy: local_dp, updates clipped to 1, noise multiplier 2: epsilon 2.17" in capfd.readouterr().err


def test_what_a_real_client_draws_nobody_can_draw_again(federate, files, monkeypatch):
    drawn = []
    monkeypatch.setattr("builtins.drawn", drawn, raising=False)
    federate(nodes(files), client_mods="[test_client_app.draws]")
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
        ({"lr": 0.1}, {}, ["--node-config has lr", "a node decides data, dataset, model.name_or_path", "cache_dir"]),
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
    assert "1 of 2 clients came; continuing without the others" in capfd.readouterr().out
    found = lines(run)
    assert (2, "client-0", "train") in found and (2, "client-1", "train") not in found


def test_clients_share_out_a_data_set_as_in_one_process(federate, command_line):
    """The numbers are those of engine=local, whichever ids Flower draws and in whichever order replies come."""
    divided = {"partition": "iid", "accuracy_on": "server", "n_train_examples": 60, "client_num_in_total": 3}
    divided |= {"clients_per_round": 2, "client_optimizer": "persist", "optimizer": "AdamW", "lr": 1e-3}
    _, run = federate([{"partition-id": k} for k in (2, 0, 1)], **divided)
    here = command_line(*(f"{key}={value}" for key, value in {**SMALL, **divided}.items())).run
    expected, found = lines(here), lines(run)
    assert found.keys() == expected.keys()
    for key, line in found.items():
        assert line == {name: expected[key][name] for name in line}, key
    assert (here / "policy" / "model.safetensors").read_bytes() == (run / "policy" / "model.safetensors").read_bytes()


def test_where_a_simulated_client_fails_is_in_the_run_folder(federate, capfd):
    shared = {"partition": "iid", "accuracy_on": "server", "client_mods": "[test_client_app.spoils]"}
    _, run = federate([{"partition-id": 0}, {"partition-id": 1}], **shared, min_fit_clients=1)
    assert "client-1 is left out: KeyError: 'nothing'" in capfd.readouterr().out
    log = (run / "failures.log").read_text()
    assert "round 1, client-1: Traceback" in log and "in spoils" in log


def spoils(message, context, call_next):
    """Fail at one client, as a mod with a mistake does."""
    if context.node_config["partition-id"] == 1:
        raise KeyError("nothing")
    return call_next(message, context)


def test_a_node_without_its_memory_takes_up_what_it_keeps_on_its_disk(federate, files, monkeypatch):
    """A SuperNode that was started again has an empty context; the rounds are the same with and without it."""
    typed = {"comm_round": 3, "client_optimizer": "persist", "optimizer": "AdamW", "lr": 1e-3}
    _, whole = federate(nodes(files), **typed)
    answer = FlowerGrid.answer

    def forgetful(grid, message):
        for context in grid.contexts.values():
            for key in list(context.state):
                del context.state[key]
        return answer(grid, message)

    monkeypatch.setattr(FlowerGrid, "answer", forgetful)
    _, again = federate(nodes(files), exp_name="again", **typed)
    assert lines(whole) == lines(again)


def test_clients_without_a_number_of_their_own_keep_the_one_they_had(federate, files):
    """The clients answer in another order when the run is resumed; checkpoints are five rounds apart."""
    typed = {"client_optimizer": "persist", "optimizer": "AdamW", "lr": 1e-3, "checkpoint_every": 5}
    unnamed = [{"data": node["data"]} for node in nodes(files)]
    _, whole = federate(unnamed, **typed, comm_round=8)
    cut = {**typed, "exp_name": "cut", "comm_round": 7}
    grid, begun = federate(unnamed, **cut)
    for later in ("round-7", "best"):
        shutil.rmtree(begun / "checkpoints" / later, ignore_errors=True)
    assert (begun / "checkpoints" / "round-5").is_dir()
    given = {"resume": str(begun), "comm_round": 8, "process_timeout": 5}
    again = [{**node, "cache_dir": str(begun.parents[2] / f"cache-{k}")} for k, node in enumerate(unnamed)]
    grid = FlowerGrid([(client_app.flower_app(), node) for node in again[::-1]], given)
    server_app.run(server_app.settings_of(through_flower(given)), grid)
    margins = [lines(run)[8, "server", "test"]["margin"] for run in (whole, begun)]
    assert margins[0] == margins[1]


@pytest.mark.parametrize(
    ("name", "place"), [("fed.data.token_cache.tokenize", 0), ("fed.model.references.pair_logps", 1)]
)
def test_the_process_of_a_message_finds_tokens_and_references_on_its_disk(federate, files, monkeypatch, name, place):
    module, function = name.rsplit(".", 1)
    plain, made = getattr(sys.modules[module], function), []

    def counted(*given, **how):
        made.append(len(given[place]))
        return plain(*given, **how)

    monkeypatch.setattr(name, counted)
    federate(nodes(files))
    held_out, training = 1, 19  # pairs of each of two nodes, which get three messages
    assert sorted(count for count in made if count in (held_out, training)) == [held_out] * 2 + [training] * 2
    made.clear()
    federate(nodes(files), exp_name="again")
    assert not any(made)


def test_a_round_is_told_before_the_clients_train_in_the_next(federate, files, monkeypatch, capfd):
    monkeypatch.setattr(sys, "stderr", sys.stdout)  # the clients' lines and the server's in one stream
    federate(nodes(files))
    out = capfd.readouterr().out
    told = ("round 0/2", "round 1: client 0 trains", "round 1/2", "round 2: client 0 trains", "round 2/2")
    assert sorted(told, key=out.index) == list(told)


@pytest.mark.parametrize("lora", [0, 2])
def test_half_the_bytes_travel_in_bfloat16_and_the_same_is_learned(federate, files, command_line, lora):
    settings = {"wire_dtype": "bfloat16", "lora.r": lora} if lora else {"wire_dtype": "bfloat16"}
    grid, halved = federate(nodes(files), **settings)
    _, whole = federate(nodes(files), exp_name="whole", **{**settings, "wire_dtype": "float32"})
    key = (2, "server", "communication")
    for way in ("bytes_sent", "bytes_received"):
        assert 2 * lines(halved)[key][way] == lines(whole)[key][way]
    counted = lines(halved)[2, "server", "communication"]["bytes_received"]
    written = sum(len(content) for kind, content, _ in grid.received[-2:] if kind == "train")
    assert counted <= written <= counted + 30_000  # names, shapes and metrics
    test = (2, "server", "test")
    assert lines(halved)[test]["margin"] == pytest.approx(lines(whole)[test]["margin"], rel=0.02)
    assert lines(halved)[test]["margin"] != lines(whole)[test]["margin"]
    typed = {**OWN, **settings, "client_data": f"[{files[0]},{files[1]}]"}
    here = command_line(*(f"{key}={value}" for key, value in typed.items())).run
    assert lines(here)[test]["margin"] == lines(halved)[test]["margin"]


def test_a_run_goes_on_after_its_checkpoint(federate, files):
    """The nodes have other ids, as after a new start of the SuperLink, and find the run on their disks."""
    typed = {"client_optimizer": "persist", "optimizer": "AdamW", "lr": 1e-3, "frequency_of_test": 1}
    _, whole = federate(nodes(files), **typed, comm_round=4)
    _, begun = federate(nodes(files), **typed, exp_name="begun")
    given = {"resume": str(begun), "comm_round": 4, "process_timeout": 5}
    grid = FlowerGrid(
        [(client_app.flower_app(), {"cache_dir": "cache-1", **node}) for node in nodes(files)[::-1]], given
    )
    for number, context in enumerate(list(grid.contexts.values())[::-1]):
        context.node_config["cache_dir"] = str(begun.parents[2] / f"cache-{number}")
    server_app.run(server_app.settings_of(through_flower(given)), grid)
    assert lines(begun) == lines(whole)
    weights = [(run / "policy" / "model.safetensors").read_bytes() for run in (whole, begun)]
    assert weights[0] == weights[1]


def test_each_kind_of_run_says_how_it_goes_on(federate, files, command_line):
    _, deployed = federate(nodes(files), comm_round=1)
    here = command_line("comm_round=1", "client_num_in_total=2", "n_train_examples=40").run
    with pytest.raises(ValueError, match=r"goes on with: flwr run . NAME -c"):
        resumed(Request(Config(resume=str(deployed)), frozenset({"resume"})))
    with pytest.raises(ValueError, match=r"goes on with: python main.py resume="):
        server_app.settings_of(through_flower({"resume": str(here), "comm_round": 2}))
