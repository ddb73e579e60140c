"""Tests of a real SuperLink with SuperNodes: who is let in, and the results are those of engine=local."""

import os
import re
import subprocess

import psutil
import pytest

from support.deployment import ROOT, Deployment, same


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


def script(folder, *typed, **environment):
    """Run `bash scripts/deploy_local.sh ...`, and return it with the processes that it left running."""
    own = {**os.environ, "KEEP": str(folder / "kept"), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        ["bash", "scripts/deploy_local.sh", *typed], cwd=ROOT, env=own, capture_output=True, text=True, timeout=500
    )
    left = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or [])
    ]
    return done, left


def test_the_script_runs_a_deployment_with_the_results_of_one_process_and_stops_it(tmp_path, command_line):
    servers = ["n_test_examples=32", "n_eval_examples=16"]
    done, left = script(tmp_path, *servers)
    assert done.returncode == 0, done.stderr
    assert re.search(r"2 rounds, 2 clients, 152 pairs; final accuracy 0\.[0-9]{3} \(test\)", done.stdout), done.stdout
    assert not left
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    (deployed,) = (tmp_path / "kept" / "runs").glob("*/*")
    files = ",".join(f"{tmp_path}/kept/node-{number}.jsonl" for number in (1, 2))
    own = ["partition=own", "accuracy_on=client", "client_num_in_total=2", "comm_round=2", f"client_data=[{files}]"]
    same(deployed, command_line(*own, *servers).run)


def test_the_script_fails_if_no_round_was_run(tmp_path):
    done, left = script(tmp_path, TIMEOUT="3")
    assert done.returncode == 1 and "error: the run did not end well" in done.stderr
    assert not left
