"""`scripts/certificates.sh` makes certificates and keys that fit, and refuses mistakes in one line."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "certificates.sh"
BASH = shutil.which("bash") or "bash"


def call(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BASH, SCRIPT, *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def openssl(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["openssl", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


def test_the_server_is_signed_by_the_authority_for_all_its_names(tmp_path: Path) -> None:
    done = call(tmp_path, "folder=certs", "hosts=link.example.org,10.0.0.1,::1", "nodes=a,b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    folder = tmp_path / "certs"
    found = {path.name for path in folder.iterdir()}
    assert found == {"ca.pem", "server.pem", "server.key", "a.key", "a.pub", "b.key", "b.pub"}
    assert openssl(folder, "verify", "-CAfile", "ca.pem", "server.pem") == "server.pem: OK\n"
    names = openssl(folder, "x509", "-in", "server.pem", "-noout", "-ext", "subjectAltName")
    assert "DNS:link.example.org, IP Address:10.0.0.1, IP Address:0:0:0:0:0:0:0:1" in names
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.glob("*.key"))
    assert (folder / "a.pub").read_text().startswith("ecdsa-sha2-nistp384 ")
    assert (folder / "a.pub").read_text() != (folder / "b.pub").read_text()


def test_a_second_call_replaces_everything(tmp_path: Path) -> None:
    assert call(tmp_path, "nodes=a").returncode == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "certs").iterdir()}
    assert call(tmp_path, "nodes=a").returncode == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "certs").iterdir()}
    assert before.keys() == after.keys() and all(before[name] != after[name] for name in before)


@pytest.mark.parametrize(
    ("argument", "path", "told"),
    [
        ("host=x", None, "error: host=x is unknown; expected folder=, hosts= or nodes=\n"),
        ("folder=", None, "error: folder= is unknown; expected folder=, hosts= or nodes=\n"),
        ("nodes=a", "/nowhere", "error: there is no openssl; install openssl and openssh-client\n"),
    ],
)
def test_a_mistake_is_told_in_one_line(tmp_path: Path, argument: str, path: str | None, told: str) -> None:
    done = call(tmp_path, argument, **({"PATH": path} if path else {}))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)
    assert not list(tmp_path.iterdir())
