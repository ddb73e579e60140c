"""Tests of clients behind Flower's engines over several rounds: their numbers, and what they find on their disks."""

import shutil
import sys

import pytest
from flwr.serverapp.strategy import FedAvg

from fed.config.checks import Request
from fed.config.schema import Config
from fed.errors import CannotContinue
from run import client_app, server_app, site
from run.resume import resumed
from support.configured import through_flower
from support.deployment import lines
from support.flower_grid import FlowerGrid
from support.flower_runs import OWN, SMALL, nodes


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
    shared = {"partition": "iid", "accuracy_on": "server", "client_mods": "[test_site.spoils]"}
    shared |= {"n_train_examples": 40}
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
    """The clients answer in another order when the run is resumed; checkpoints are two rounds apart."""
    typed = {"client_optimizer": "persist", "optimizer": "AdamW", "lr": 1e-3, "checkpoint_every": 2}
    unnamed = [{"data": node["data"]} for node in nodes(files)]
    _, whole = federate(unnamed, **typed, comm_round=4)
    cut = {**typed, "exp_name": "cut", "comm_round": 3}
    grid, begun = federate(unnamed, **cut)
    for later in ("round-3", "best"):
        shutil.rmtree(begun / "checkpoints" / later, ignore_errors=True)
    assert (begun / "checkpoints" / "round-2").is_dir()
    given = {"resume": str(begun), "comm_round": 4, "process_timeout": 5}
    again = [{**node, "cache_dir": str(begun.parents[2] / f"cache-{k}")} for k, node in enumerate(unnamed)]
    grid = FlowerGrid([(client_app.flower_app(), node) for node in again[::-1]], given)
    server_app.run(server_app.settings_of(through_flower(given)), grid)
    margins = [lines(run)[4, "server", "test"]["margin"] for run in (whole, begun)]
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
    here = command_line(*(f"{key}={value}" for key, value in SMALL.items()), "n_train_examples=40").run
    with pytest.raises(ValueError, match=r"resume it with: flwr run . NAME -c"):
        resumed(Request(Config(resume=str(deployed)), frozenset({"resume"})))
    with pytest.raises(ValueError, match=r"resume it with: python main.py resume="):
        server_app.settings_of(through_flower({"resume": str(here), "comm_round": 3}))


class Tells(FedAvg):
    """A strategy that sends its clients something that they do not know."""

    def configure_train(self, server_round, arrays, config, grid):
        config["local-epochs"] = 3
        return super().configure_train(server_round, arrays, config, grid)


def test_a_node_refuses_what_nothing_reads(federate, files, capfd):
    with pytest.raises(CannotContinue):
        federate(nodes(files), strategy="fedavg", **{"strategy._target_": "test_site.Tells"}, min_fit_clients=1)
    assert "the strategy sends clients local-epochs=3, which nothing reads" in capfd.readouterr().err


def test_a_node_scores_what_it_receives_on_the_pairs_that_the_run_names(federate, files, monkeypatch):
    named, made = [], site.Client
    monkeypatch.setattr(site, "Client", lambda *a, **b: named.append(b.get("accuracy_on")) or made(*a, **b))
    federate(nodes(files), comm_round=1)
    assert {*named} == {"client"}
