"""Tests of a real SuperLink with SuperNodes: the results are those of engine=local, and a failing node is left out."""

import os
import re
import subprocess
from collections.abc import Iterator

import psutil
import pytest
from safetensors.torch import load_file

from support.deployment import ROOT, Deployment, lines

OWN = {"partition": "own", "accuracy_on": "client", "client_num_in_total": 2, "comm_round": 2}
SERVERS = {"n_test_examples": 32, "n_eval_examples": 16}
NODES = ("node-1", "node-2")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Start a SuperLink and two SuperNodes, each with a file of its own."""
    found = Deployment(tmp_path_factory.mktemp("deployment"), [*NODES, "stranger"])
    try:
        found.call("python", "scripts/demo_files.py", *(f"{found.folder}/{node}.jsonl" for node in NODES))
        found.start_superlink()
        for number, node in enumerate(NODES):
            found.register(node)
            start(found, number)
        yield found
    finally:
        found.close()


def start(deployment: Deployment, number: int, **config: object) -> None:
    """Start node 1 or 2, whose `partition-id` is its number."""
    node, folder = NODES[number], deployment.folder
    own = {"data": f"{folder}/{node}.jsonl", "cache_dir": f"{folder}/{node}-cache", "partition-id": number}
    deployment.start_node(node, **{**own, **config})


def test_two_supernodes_give_the_results_of_one_process(deployment, command_line):
    deployed = deployment.run("equal", **OWN, **SERVERS)
    files = ",".join(f"{deployment.folder}/{node}.jsonl" for node in NODES)
    typed = [f"{key}={value}" for key, value in {**OWN, **SERVERS}.items()]
    here = command_line(*typed, f"client_data=[{files}]").run
    expected, found = lines(here), lines(deployed)
    assert found.keys() == expected.keys()
    for key, line in found.items():
        for name in line.keys() & expected[key].keys():
            assert line[name] == pytest.approx(expected[key][name], abs=1e-6), (key, name)
    assert (expected[2, "server", "test"]["accuracy"], expected[2, "server", "test"]["margin"]) != (0, 0)
    weights = [load_file(run / "policy" / "model.safetensors") for run in (here, deployed)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() <= 1e-6, name


def test_a_node_that_is_killed_is_left_out_and_comes_back(deployment):
    settings = {**OWN, **SERVERS, "comm_round": 3, "local_epochs": 60}
    before = deployment.log("node-2").count("round 1: client 1 trains")
    deployment.begin("killed", **settings)
    deployment.wait_for("node-2", "round 1: client 1 trains", count=before + 1)
    deployment.kill("node-2")
    deployment.wait_for("run-killed", "client-1", 100)  # Flower misses two heartbeats
    start(deployment, 1)
    told = lines(deployment.end("killed"))
    assert [who in ("client-0", "client-1") for _, who, split in told if split == "failure"] == [True]
    assert (1, "client-0", "train") in told and (1, "client-1", "train") not in told
    assert (3, "client-0", "train") in told and (3, "client-1", "train") in told


def test_strangers_are_told_why_they_are_not_let_in(deployment):
    deployment.call("bash", "scripts/certificates.sh", f"folder={deployment.folder}/certs/other", "nodes=")
    deployment.start_node("stranger", data="x.jsonl")
    deployment.start_node("impostor", "other/ca.pem", "stranger", data="x.jsonl")
    deployment.wait_for("stranger", "305")
    deployment.wait_for("impostor", "CERTIFICATE_VERIFY_FAILED")


def script(folder, **environment):
    """Run `bash scripts/deploy_local.sh`, and return it with the processes that it left running."""
    own = {**os.environ, "KEEP": str(folder / "kept"), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        ["bash", "scripts/deploy_local.sh"], cwd=ROOT, env=own, capture_output=True, text=True, timeout=500
    )
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or [])
    ]
    return done, left


def test_the_script_runs_a_deployment_and_stops_it(tmp_path):
    done, left = script(tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"2 rounds, 2 clients, 152 pairs; final accuracy 0\.[0-9]{3} \(test\)", done.stdout), done.stdout
    assert not left
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_the_script_fails_if_no_round_was_run(tmp_path):
    done, left = script(tmp_path, TIMEOUT="3")
    assert done.returncode == 1 and "error: the run did not end well" in done.stderr
    assert not left
