"""`make faults`: a deployment loses a SuperNode or has no time, and a run in Ray's workers is stopped."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command_line import CommandLine
from support.deployment import Deployment, assert_same, deploy_local, lines
from support.ray_runs import TYPED, started

pytestmark = pytest.mark.faults
NODES = ("node-1", "node-2")


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Deployment]:
    """Start a SuperLink and two SuperNodes, each with a file of its own."""
    found = Deployment(tmp_path, [*NODES])
    try:
        found.call("python", "scripts/demo_files.py", *(f"{found.folder}/{node}.jsonl" for node in NODES))
        found.start_superlink()
        for number, node in enumerate(NODES):
            found.register(node)
            start(found, number)
        yield found
    finally:
        found.close()


def start(deployment: Deployment, number: int) -> None:
    """Start the node at this place in `NODES`; its `partition-id` is the place."""
    node, folder = NODES[number], deployment.folder
    own = {"data": f"{folder}/{node}.jsonl", "cache_dir": f"{folder}/{node}-cache", "partition-id": number}
    deployment.start_node(node, **own)


def test_a_node_that_is_killed_is_left_out_and_comes_back(deployment: Deployment) -> None:
    settings = {"partition": "own", "accuracy_on": "client", "client_num_in_total": 2, "comm_round": 3}
    settings |= {"local_epochs": 60, "n_test_examples": 32, "n_eval_examples": 16}
    deployment.begin("killed", **settings)
    deployment.wait_for("node-2", "round 1: client 1 trains")
    deployment.kill("node-2")
    deployment.wait_for("run-killed", "client-1", 100)  # Flower misses two heartbeats
    start(deployment, 1)
    told = lines(deployment.end("killed"))
    assert [who in ("client-0", "client-1") for _, who, split in told if split == "failure"] == [True]
    assert (1, "client-0", "train") in told and (1, "client-1", "train") not in told
    assert (3, "client-0", "train") in told and (3, "client-1", "train") in told


def test_a_run_in_workers_of_ray_that_is_stopped_goes_on(tmp_path: Path, command_line: CommandLine) -> None:
    program = started(tmp_path, "engine=ray", *TYPED, "comm_round=2")
    while "round 1/2" not in (line := program.stdout.readline()):
        assert line, program.stderr.read()
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=120)
    (run,) = tmp_path.glob("data/fedpo/*")
    if program.returncode == 0:  # the last round was over before it heard
        pytest.skip("the run was too quick to be stopped")
    assert program.returncode == 130, err
    assert f"progress is saved; resume with: python main.py resume={run.relative_to(tmp_path)}" in err
    again = started(tmp_path, f"resume={run}")
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    assert_same(run, command_line(*TYPED).run)


def test_the_script_fails_if_no_round_was_run(tmp_path: Path) -> None:
    done, left = deploy_local(tmp_path, TIMEOUT="3")
    assert done.returncode == 1 and "error: the run did not end well" in done.stderr
    assert not left
