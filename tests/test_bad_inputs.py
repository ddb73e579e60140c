"""Every bad input of the table is refused in one line, before anything is written."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fed.config import composing
from fed.config.explain import refusal
from support.bad_inputs import BAD_INPUTS, BadInput
from support.command_line import SMALL, CommandLine, refused

TESTS = Path(__file__).parent


@pytest.mark.parametrize("bad", BAD_INPUTS, ids=lambda bad: f"{bad.kind}: {bad.name}")
def test_a_bad_input_is_told_in_one_line_and_nothing_is_written(
    command_line: CommandLine, tmp_path: Path, bad: BadInput
) -> None:
    folder = tmp_path / "input"
    folder.mkdir()
    arguments = bad.arguments(folder)
    prepared = sorted(folder.iterdir())
    if bad.kind == "config" and (told := message_of_settings(arguments)):
        assert "\n" not in told and all(word in told for word in bad.words.split()), told
    else:
        refused(command_line(*arguments), *bad.words.split())
    assert sorted(folder.iterdir()) == prepared


def message_of_settings(arguments: list[str]) -> str:
    """Return the message that refuses these settings before data are loaded, "" if none does: half of a call's time."""
    if any(argument.startswith("--") for argument in arguments):
        return ""
    try:
        composing.request(arguments)
    except (ValueError, HydraException, OmegaConfBaseException) as error:
        return refusal(error)
    return ""


@pytest.mark.parametrize("typed", ["comm_rounds=3", "comm_round=abc", "lr=0", "a==b", "temp=1 strategy=fedavg"])
def test_the_program_prints_the_message_that_refuses_its_settings(command_line: CommandLine, typed: str) -> None:
    arguments = [*SMALL, *typed.split()]
    result = command_line(*arguments)
    refused(result)
    assert result.err == f"error: {message_of_settings(arguments)}\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_is_told(command_line: CommandLine) -> None:
    refused(command_line(*SMALL, "device=cuda"), "device=cuda", "device=cpu")


def test_the_table_has_every_kind_and_nothing_twice() -> None:
    assert len({(bad.kind, bad.name) for bad in BAD_INPUTS}) == len(BAD_INPUTS) >= 70
    assert min(Counter(bad.kind for bad in BAD_INPUTS).values()) >= 15


def test_the_table_can_be_read_without_pytest() -> None:
    code = "import sys; sys.modules['pytest'] = None; import support.bad_inputs"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    subprocess.run([sys.executable, "-P", "-c", code], env=env, check=True, timeout=60)
