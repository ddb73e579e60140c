"""The flags of the command line: what they print, and how fast."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import main
from support.command_line import CommandLine

ROOT = Path(main.__file__).parent


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--help", "Usage: python main.py KEY=VALUE lr=5e-07 strategy=fedpo experiment=temp_sweep docs/settings.md"),
        ("-h comm_round=1", "Usage: python main.py"),
        ("--version", "fedpo commit python torch flwr"),
        ("--cfg job", "temp: 0.1"),
    ],
)
def test_flags_work(command_line: CommandLine, flags: str, words: str) -> None:
    result = command_line(*flags.split())
    assert result.code == 0 and result.err == ""
    assert all(word in result.out for word in words.split()), result.out
    assert list(result.folder.iterdir()) == []


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_import_nothing_that_takes_seconds(flag: str, tmp_path: Path) -> None:
    large = "{'torch', 'transformers', 'flwr', 'matplotlib'}"
    code = f"import sys, main; sys.argv[1:] = [{flag!r}]; main.main(); print([*{large} & {{*sys.modules}}])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.splitlines()[-1] == "[]"
