"""Tests of a real SuperLink with SuperNodes: who is let in, and the results are those of engine=local."""

import re

import pytest

from support.deployment import Deployment, assert_same, deploy_local


@pytest.fixture
def deployment(tmp_path):
    """Start a SuperLink that knows no node."""
    found = Deployment(tmp_path, ["stranger"])
    try:
        found.start_superlink()
        yield found
    finally:
        found.close()


def test_strangers_are_told_why_they_are_not_let_in(deployment):
    deployment.call("bash", "scripts/certificates.sh", f"folder={deployment.folder}/certs/other", "nodes=")
    deployment.start_node("stranger", data="x.jsonl")
    deployment.start_node("impostor", "other/ca.pem", "stranger", data="x.jsonl")
    deployment.wait_for("stranger", "305")
    deployment.wait_for("impostor", "CERTIFICATE_VERIFY_FAILED")


def test_the_script_runs_a_deployment_with_the_results_of_one_process_and_stops_it(tmp_path, command_line):
    servers = ["n_test_examples=32", "n_eval_examples=16"]
    done, left = deploy_local(tmp_path, *servers)
    assert done.returncode == 0, done.stderr
    assert re.search(r"2 rounds, 2 clients, 152 pairs; final accuracy 0\.[0-9]{3} \(test\)", done.stdout), done.stdout
    assert not left
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    (deployed,) = (tmp_path / "kept" / "runs").glob("*/*")
    files = ",".join(f"{tmp_path}/kept/node-{number}.jsonl" for number in (1, 2))
    own = ["partition=own", "accuracy_on=client", "client_num_in_total=2", "comm_round=2", f"client_data=[{files}]"]
    assert_same(deployed, command_line(*own, *servers).run)
