"""Online runs whose clients measure the win rate on prompts of their own, and tell counts only."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clients.app
from feedback.contest import Contest
from feedback.winrates import length_controlled, win_rate
from support.command_line import CommandLine
from support.online_runs import ONLINE, lines
from support.separate_runs import launch, only_run

COUNTS = (
    *("client_num_in_total=3", "comm_round=2", "n_train_examples=90", "n_test_examples=8", "client_eval_fraction=0.3"),
    *("strategy=fedavg", "strategy.fraction_evaluate=1", "online.client_eval_prompts=6", "lr=0.01", "alpha=0"),
    *("warmup_steps=0", "batch_size=8", "online.n=4"),
)


@pytest.mark.parametrize("adapter", [(), ("lora.r=2",)])
def test_clients_tell_counts_and_the_server_knows_the_rate_of_all(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch, adapter: tuple[str, ...]
) -> None:
    seen: list[Any] = []
    judged: list[Any] = []
    answer, battles = clients.app.Client.evaluate, Contest.battles

    def evaluate(self: Any, message: Any, context: Any) -> Any:
        seen.append(deepcopy(reply := answer(self, message, context)))
        return reply

    def spied(self: Any, new: Any, old: Any) -> Any:
        found = battles(self, new, old)
        judged.extend(found[0] if len(new) == 6 else [])
        return found

    monkeypatch.setattr(clients.app.Client, "evaluate", evaluate)
    monkeypatch.setattr(Contest, "battles", spied)
    result = command_line(*COUNTS, *ONLINE, *adapter)
    assert result.code == 0, result.err
    lines_of_all = lines(result.run, "held-out", "server")
    assert [line["round"] for line in lines_of_all] == [1, 2] and "clients' win rate" in result.out
    every = [battle._replace(prompt=place) for place, battle in enumerate(judged)]
    for line, own in zip(lines_of_all, (every[:18], every[18:]), strict=True):
        assert line["win_prompts"] == len(own) == 18
        assert line["win_rate"] == pytest.approx(win_rate(own).value, abs=1e-12)
        assert line["length_controlled"] == pytest.approx(length_controlled(own).value, abs=1e-3)
    assert len(seen) == 6
    for reply in seen:
        assert set(reply.content) == {"metrics"}
        values = [np.ravel(value).tolist() for value in reply.content["metrics"].values()]
        assert all(isinstance(number, int | float) for each in values for number in each)


def test_a_run_with_counts_goes_on_to_the_same_figures(tmp_path: Path) -> None:
    options = (*COUNTS, *ONLINE, "output_dir=runs", "cache_dir=cache", "num_threads=1")
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    assert launch(tmp_path / "whole", *options).code == 0
    assert launch(tmp_path / "cut", *options, "comm_round=1").code == 0
    cut, whole = only_run(tmp_path / "cut"), only_run(tmp_path / "whole")
    assert cut is not None and whole is not None
    assert launch(tmp_path / "cut", f"resume={cut}", "comm_round=2").code == 0
    assert lines(cut, "held-out") == lines(whole, "held-out")
