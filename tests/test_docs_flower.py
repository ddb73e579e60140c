"""What docs/deployment.md says of Flower's own programs holds for the Flower that is installed."""

import re
from importlib import import_module
from pathlib import Path

import pytest

local_superlink = import_module("flwr.cli.local_superlink")
flower_superlink = import_module("flwr.superlink.cli.flower_superlink")  # a function has the same name
PAGE = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text()
SECTION = PAGE.partition("## Flower's simulation\n")[2].partition("\n## ")[0]


class Started(Exception):
    """The command that would have been started."""


def test_the_command_that_ends_what_stays_finds_what_flower_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def popen(command: list[str], **_: object) -> None:
        raise Started(" ".join(command))

    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setattr(local_superlink.subprocess, "Popen", popen)
    with pytest.raises(Started) as started:
        local_superlink._start_local_superlink()
    (pattern,) = re.findall(r"(?m)^pkill -f '(.*)'$", SECTION)
    assert re.search(pattern, str(started.value))
    assert not re.search(pattern, "flower-superlink --host 0.0.0.0 --port 8000")  # a coordinator's


def test_the_variables_of_the_page_keep_flower_from_installing(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = re.findall(r"(?m)^export (.*)$", SECTION)
    assert SECTION.index("export ") < SECTION.index("flwr run . local")
    monkeypatch.delenv("FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION", raising=False)
    assert flower_superlink._runtime_dependency_install_default()
    for variable in line.split():
        monkeypatch.setenv(*variable.split("="))
    assert not flower_superlink._runtime_dependency_install_default()
