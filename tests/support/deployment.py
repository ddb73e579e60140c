"""A SuperLink and SuperNodes on this machine, over TLS and with keys of their own, that end with the test."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file

from support.configured import through_flower

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Deployment:
    """Starts Flower's programs, keeps what they print, and stops them.

    Args:
        folder: For everything they write.
        nodes: Names of the nodes that get a key.
    """

    def __init__(self, folder: Path, nodes: list[str]) -> None:
        self.folder, self._started = folder, dict[str, subprocess.Popen[bytes]]()
        self.port = self.public = free_port()  # of the SuperLink, and where nodes find it
        (folder / "flwr").mkdir(parents=True)
        (folder / "flwr" / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{folder}/certs/ca.pem"\n'
        )
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.call("bash", "scripts/certificates.sh", f"folder={folder}/certs", f"nodes={','.join(nodes)}")

    def start_superlink(self) -> None:
        """Start the SuperLink and wait until it answers."""
        certs = self.folder / "certs"
        files = [f"--ssl-ca-certfile={certs}/ca.pem", f"--ssl-certfile={certs}/server.pem"]
        files.append(f"--ssl-keyfile={certs}/server.key")
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--enable-supernode-auth"]
        self.start("superlink", "flower-superlink", *where, *files, "--disable-runtime-dependency-installation")
        self.wait_for("superlink", "startup complete")

    def register(self, node: str) -> None:
        """Register the node's key at the SuperLink."""
        self.call("flwr", "supernode", "register", f"{self.folder}/certs/{node}.pub", "here")

    def start_node(
        self,
        node: str,
        authority: str = "ca.pem",
        key: str | None = None,
        command: Sequence[str] = ("flower-supernode",),
        program: Path = ROOT,
        **config: object,
    ) -> None:
        """Start a SuperNode with this configuration, by a command in the folder of a program."""
        texts = (f"{name}={json.dumps(value)}" for name, value in config.items())
        where = ["--superlink", f"127.0.0.1:{self.public}", "--host", "127.0.0.1", "--port", str(free_port())]
        keys = [f"--root-certificates={self.folder}/certs/{authority}"]
        keys.append(f"--auth-supernode-private-key={self.folder}/certs/{key or node}.key")
        self.start(node, *command, *where, *keys, "--node-config", " ".join(texts), program=program)

    def start(self, name: str, *command: str, program: Path = ROOT) -> None:
        """Start a program; what it prints goes to `NAME.log`."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self._started[name] = subprocess.Popen(
                command, cwd=program, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300, check=True
        )

    def begin(self, exp_name: str, program: Path = ROOT, **settings: object) -> None:
        """Start `flwr run` of a program without waiting."""
        every = {"exp_name": exp_name, "output_dir": f"{self.folder}/runs", "cache_dir": f"{self.folder}/server"}
        (typed,) = through_flower({**every, **settings}).values()
        self.start(f"run-{exp_name}", "flwr", "run", str(program), "here", "--stream", "-c", f'settings="{typed}"')

    def end(self, exp_name: str) -> Path:
        """Wait until a run that has begun ends, and return its folder."""
        self._started.pop(f"run-{exp_name}").wait(500)
        (folder,) = (self.folder / "runs" / exp_name).iterdir()
        return folder

    def log(self, name: str) -> str:
        """Return the text that a program has printed."""
        path = self.folder / f"{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for(self, name: str, words: str, seconds: float = 180) -> None:
        """Wait until a program has printed these words."""
        deadline = time.monotonic() + seconds
        while words not in self.log(name):
            assert time.monotonic() < deadline, f"{name} has not said {words!r}:\n{self.log(name)[-3000:]}"
            time.sleep(0.1)

    def wait_until_listening(self, port: int, seconds: float = 30) -> None:
        """Wait until a program listens at this port."""
        deadline = time.monotonic() + seconds
        while True:
            with socket.socket() as found:
                if found.connect_ex(("127.0.0.1", port)) == 0:
                    return
            assert time.monotonic() < deadline, f"nobody listens at {port}"
            time.sleep(0.1)

    def kill(self, name: str) -> None:
        """End a program at once, with all that it started, as when a machine loses its power."""
        program = self._started.pop(name)
        if program.poll() is None:
            own = psutil.Process(program.pid)
            for process in (own, *own.children(recursive=True)):
                process.kill()
        program.wait(30)

    def close(self) -> None:
        """End every program that is still running."""
        for name in list(self._started)[::-1]:
            self.kill(name)


def deploy_local(
    folder: Path, *typed: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[psutil.Process]]:
    """Run `bash scripts/deploy_local.sh ...`; return its result, and the processes that it left running."""
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


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def lines(run: Path) -> dict[tuple[int, str, str], Mapping[str, Any]]:
    """Return the lines of metrics.jsonl by round, who and split."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {(line["round"], line["who"], line["split"]): line for line in found}


def assert_same(found: Path, expected: Path) -> None:
    """Assert that metrics and weights of two runs agree within 1e-6, and that the first has learned something."""
    ours, theirs = lines(found), lines(expected)
    assert ours.keys() == theirs.keys()
    for key, line in ours.items():
        for name in line.keys() & theirs[key].keys():
            assert line[name] == pytest.approx(theirs[key][name], abs=1e-6), (key, name)
    assert (ours[2, "server", "test"]["accuracy"], ours[2, "server", "test"]["margin"]) != (0, 0)
    weights = [load_file(run / "policy" / "model.safetensors") for run in (found, expected)]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert (tensor - weights[1][name]).abs().max() <= 1e-6, name
