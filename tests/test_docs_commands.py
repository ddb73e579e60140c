"""README's commands learn: a client's round is long enough for the learning rate that they name."""

import re
import shlex
from pathlib import Path

import pytest

from clients.schedule import warmed_up
from fed.config import composing
from support.federations import dpo_loss
from support.local_settings import local_settings

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = re.findall(r"(?m)^python main\.py (.*datasets=.*)$", README)
PAIRS = {"hh": 160_800, "files": 1_000}  # of the hub's training split, and of a small file of the reader's own


def test_the_readme_trains_on_hh_and_on_the_readers_own_pairs() -> None:
    assert {name for command in COMMANDS for name in PAIRS if f"datasets=[{name}]" in command} == {*PAIRS}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_client_reaches_the_learning_rate_within_a_round(command: str) -> None:
    config = composing.request(shlex.split(command)).config
    pairs = (1 - config.server_fraction) * PAIRS[config.datasets[0]] / config.client_num_in_total
    steps = max(1, int((1 - config.client_eval_fraction) * pairs / config.batch_size))
    settings = local_settings(
        loss=dpo_loss, warmup_steps=config.warmup_steps, warmup_ratio=config.warmup_ratio,
        warmup_restarts=config.warmup_restarts, client_optimizer=config.client_optimizer,
    )  # fmt: skip
    assert warmed_up(settings, steps, number=steps - 1, updates=steps - 1) == 1, f"{steps} steps"
