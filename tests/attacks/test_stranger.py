"""Strangers at a real SuperLink: code in a run's bundle, the public port, a hostile node and a hostile server."""

import shutil
import subprocess
from pathlib import Path

import psutil
import pytest

from support.deployment import BIN, ROOT, Deployment, free_port, lines

pytestmark = pytest.mark.faults
NGINX = shutil.which("nginx", path=f"/usr/sbin:{BIN}:/usr/bin")
SMALL = {"comm_round": 3, "partition": "own", "accuracy_on": "client", "process_timeout": 120}
SMALL |= {"n_test_examples": 16, "n_eval_examples": 16}
OWN_CODE = ("python", "-m", "scripts.node")


@pytest.fixture
def deployment(tmp_path):
    """Start a SuperLink that knows two nodes."""
    found = Deployment(tmp_path, ["one", "two"])
    try:
        found.start_superlink()
        found.register("one")
        found.register("two")
        found.call("python", "scripts/demo_files.py", f"{tmp_path}/one.jsonl", f"{tmp_path}/two.jsonl")
        yield found
    finally:
        found.close()


def start(deployment: Deployment, node: str, **more: object) -> None:
    folder = deployment.folder
    own = {"data": f"{folder}/{node}.jsonl", "cache_dir": f"{folder}/cache-{node}", "partition-id": int(node == "two")}
    deployment.start_node(node, **{"command": OWN_CODE, **own, **more})


def strangers(folder: Path, file: str, before: str, after: str) -> Path:
    """Copy this program, with another text in one of its files."""
    copy = folder / "strangers"
    left_out = shutil.ignore_patterns(".*", "*.egg-info", "data", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left_out, symlinks=True)
    text = (copy / file).read_text()
    assert before in text
    (copy / file).write_text(text.replace(before, after, 1))
    return copy


@pytest.mark.parametrize("command", [OWN_CODE, ("flower-supernode",)], ids=["scripts.node", "flower-supernode"])
def test_the_code_of_a_run_runs_at_a_plain_node_only(deployment, command):
    """The same run at a node as docs/deployment.md asks for, and at Flower's own."""
    mark = f"import pathlib\n\npathlib.Path({str(deployment.folder / 'ran')!r}).write_text('ran')\nimport traceback"
    program = strangers(deployment.folder, "run/client_app.py", "import traceback", mark)
    start(deployment, "one", command=command)
    deployment.begin("stranger", program, client_num_in_total=1, **{**SMALL, "comm_round": 1})
    run = deployment.end("stranger")
    assert (run / "summary.json").exists(), deployment.log("one")[-3000:]
    assert (deployment.folder / "ran").exists() == (command != OWN_CODE)
    told = "1 files of the run's code differ from this node's, which runs its own (first: run/client_app.py)"
    assert (told in deployment.log("one")) == (command == OWN_CODE)


def test_a_hostile_node_costs_nobody_else_a_round(deployment):
    """It reports an accuracy of 1e308 three times."""
    before = "def train(message: Message, context: Context) -> Message:\n        return "
    after = before.replace("return", "reply =") + (
        "_guarded(Site.answer, message, context, folder)\n"
        '        reply.content["metrics"]["accuracy"] = 1e308\n        return reply\n        '
    )
    program = strangers(deployment.folder, "run/client_app.py", before, after)
    start(deployment, "one")
    start(deployment, "two", program=program)
    deployment.begin("hostile", client_num_in_total=2, **SMALL)
    run = deployment.end("hostile")
    found = lines(run)
    assert (run / "summary.json").exists() and (3, "server", "test") in found
    assert [(n, "client-0", "train") in found for n in (1, 2, 3)] == [True] * 3
    assert [found[n, "client-1", "failure"]["reason"][:20] for n in (1, 2, 3)] == ["its accuracy is 1e+3"] * 3


def test_a_hostile_server_gets_nothing_from_a_node(deployment):
    """It sends a path in place of the run's name, which a node would write to and clean up beside."""
    before = 'RUN: plain_name("_".join(federation.place.checkpoints.parent.absolute().parts[-2:])),'
    program = strangers(deployment.folder, "run/remote.py", before, 'RUN: "../../victim",')
    start(deployment, "one")
    deployment.begin("hostile", program, client_num_in_total=1, **{**SMALL, "process_timeout": 40})
    deployment.wait_for("one", "'../../victim' is not a plain name of letters")
    run = deployment.end("hostile")
    assert not (run / "summary.json").exists() and not (deployment.folder / "victim").exists()
    assert "1 cannot take part" in deployment.log("run-hostile")


@pytest.mark.skipif(NGINX is None, reason="there is no nginx")
def test_through_the_public_port_nobody_starts_a_run(deployment):
    folder, deployment.public = deployment.folder, free_port()
    text = (ROOT / "scripts" / "nginx.conf").read_text()
    words = {"FOLDER": folder, "PUBLIC": deployment.public, "SUPERLINK": deployment.port}
    for word, value in {**words, "OWNER": psutil.Process().username()}.items():
        text = text.replace(word, str(value))
    (folder / "nginx.conf").write_text(text)
    deployment.start("nginx", NGINX, "-c", f"{folder}/nginx.conf", "-e", f"{folder}/nginx.log")
    deployment.wait_until_listening(deployment.public)
    config = folder / "flwr" / "config.toml"
    config.write_text(config.read_text().replace(f":{deployment.port}", f":{deployment.public}"))
    tried = subprocess.run(
        ["flwr", "list", "here"], cwd=ROOT, env=deployment.environment, capture_output=True, text=True, timeout=60
    )
    assert tried.returncode and "403" in tried.stdout + tried.stderr, tried
    start(deployment, "one")
    deployment.wait_for("one", "SuperNode ID")
