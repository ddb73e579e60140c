"""Win rates by hand, by simulation, by other packages, and counted by clients."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from feedback.win_counts import WinCounts, counts_of, length_controlled_of, pooled, win_rate_of
from feedback.winrates import (
    Battle,
    fitted,
    length_controlled,
    standard_error,
    strengths,
    turned,
    win_rate,
)
from scripts.winrate import main


def drawn(count: int, *, theta: float, phi: float, seed: int = 0, ties: float = 0.1, often: int = 1) -> list[Battle]:
    """Draw judgements of a judge that likes a by `theta`, and long responses by `phi`."""
    draw = np.random.default_rng(seed)
    longer = draw.normal(40, 200, size=count)
    terms = np.tanh(longer / longer.std())
    found = []
    for place, (length, term) in enumerate(zip(longer, terms, strict=True)):
        rate = 1 / (1 + math.exp(-theta - phi * term))
        value = 0.5 if draw.random() < ties else float(draw.random() < rate)
        found.append(Battle(f"p{place // often}", "new", "old", value, float(round(length))))
    return found


def test_a_win_rate_by_hand() -> None:
    found = [Battle(n, "x", "y", value, 0.0) for n, value in enumerate([1, 1, 0.5, 0])]
    assert win_rate(found).value == 0.625 and 0 <= win_rate(found).low < 0.625 < win_rate(found).high <= 1
    assert standard_error(found) == pytest.approx(np.std([1, 1, 0.5, 0], ddof=1) / 2)
    assert win_rate([turned(battle) for battle in found]).value == 0.375
    assert length_controlled(found).value == pytest.approx(0.625, abs=1e-4), "all are equally long"


def test_plain_rates_are_those_of_alpaca_eval() -> None:
    metrics = pytest.importorskip("alpaca_eval.metrics")
    pandas = pytest.importorskip("pandas")
    found = drawn(500, theta=0.3, phi=0.5)
    rate = metrics.pairwise_to_winrate(pandas.Series([1 + battle.value for battle in found]))
    assert rate["win_rate"] / 100 == pytest.approx(win_rate(found).value, abs=1e-6)
    assert rate["standard_error"] / 100 == pytest.approx(standard_error(found), abs=1e-6)


def test_the_length_term_takes_out_what_a_judge_gives_for_length() -> None:
    """The judge does not care which model answers (theta 0) and likes long responses; a's are longer."""
    found = drawn(20_000, theta=0.0, phi=1.5, ties=0.0)
    assert win_rate(found).value > 0.53
    assert length_controlled(found).value == pytest.approx(0.5, abs=0.015)
    better = drawn(20_000, theta=0.8, phi=-1.0, ties=0.0)
    assert length_controlled(better).value == pytest.approx(1 / (1 + math.exp(-0.8)), abs=0.015)


@pytest.mark.parametrize("often", [1, 3])
def test_95_of_100_intervals_hold_the_truth(often: int) -> None:
    """300 times 240 judgements; the truth is 1 / (1 + exp(-0.4)). Measured: 96.0 and 96.3 % (standard error 1.3)."""
    truth, held = 1 / (1 + math.exp(-0.4)), 0
    for seed in range(300):
        rate = length_controlled(drawn(240, theta=0.4, phi=0.7, seed=seed, ties=0.0, often=often))
        held += rate.low <= truth <= rate.high
    assert 0.91 <= held / 300 <= 0.99


def test_the_regression_is_at_its_minimum() -> None:
    draw = np.random.default_rng(1)
    design, values = np.column_stack([np.ones(80), draw.normal(size=(80, 2))]), draw.random(80)
    ridge, counts = np.array([0.0, 0.5, 2.0]), draw.integers(1, 5, size=80).astype(float)
    weights = fitted(design, values, ridge, counts)

    def loss(at: np.ndarray) -> float:
        scores = design @ at
        return float((counts * (np.logaddexp(0, scores) - values * scores)).sum() + (ridge * at**2).sum() / 2)

    for place in range(3):
        for step in (1e-4, -1e-4):
            other = weights.copy()
            other[place] += step
            assert loss(other) > loss(weights)


@pytest.mark.parametrize("clients", [1, 4, 25])
def test_clients_that_send_counts_only_give_the_rate_of_all_judgements(clients: int) -> None:
    found = drawn(600, theta=0.4, phi=0.8, seed=3)
    owners = np.random.default_rng(5).integers(clients, size=len(found))
    own = [
        [battle for battle, owner in zip(found, owners, strict=True) if owner == client] for client in range(clients)
    ]
    told = [json.loads(json.dumps(counts_of(each, unjudged=1).as_metrics())) for each in own]
    assert {type(value) for client in told for name in client for value in np.ravel(client[name]).tolist()} <= {
        int,
        float,
    }
    all_of_them = pooled([WinCounts.of_metrics(client) for client in told])
    plain, controlled = win_rate(found), length_controlled(found)
    assert win_rate_of(all_of_them) == plain and all_of_them.unjudged == clients
    for ours, theirs in zip(
        asdict(length_controlled_of(all_of_them)).values(), asdict(controlled).values(), strict=True
    ):
        assert ours == pytest.approx(theirs, abs=1e-3)
    with pytest.raises(ValueError, match="no pair has a judgement"):
        win_rate_of(pooled([]))


def test_three_models_are_ranked_by_their_strength() -> None:
    draw, truth = np.random.default_rng(0), {"x": 4.0, "y": 2.0, "z": 1.0}
    found = [
        Battle(n, a, b, float(draw.random() < truth[a] / (truth[a] + truth[b])), 0.0)
        for n in range(3000)
        for a, b in (("x", "y"), ("y", "z"), ("x", "z"))
    ]
    scores = strengths(found)
    assert list(scores) == ["x", "y", "z"]
    assert scores["x"] / scores["z"] == pytest.approx(4, rel=0.15) and scores["y"] / scores["z"] == pytest.approx(
        2, rel=0.15
    )


@pytest.mark.parametrize(
    ("won", "is_decided"),
    [
        ([("x", "y", 1.0), ("y", "z", 1.0), ("z", "x", 1.0)], True),
        ([("x", "y", 0.5), ("y", "z", 0.5)], True),
        ([("x", "y", 1.0), ("x", "z", 1.0), ("y", "z", 0.5)], False),  # x never loses
        ([("x", "y", 0.5), ("z", "w", 0.5)], False),  # two groups that never meet
    ],
)
def test_strengths_are_told_where_the_judgements_decide_them(won: list[Any], is_decided: bool) -> None:
    assert bool(strengths([Battle(n, a, b, value, 0.0) for n, (a, b, value) in enumerate(won)])) == is_decided


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_judgements_that_are_all_the_same_have_a_plain_interval(value: float) -> None:
    found = [Battle(n, "a", "b", value, float(n)) for n in range(6)]
    assert length_controlled(found) == win_rate(found) == length_controlled_of(counts_of(found))
    assert win_rate(found).high - win_rate(found).low > 0.3


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write judgements of two models on 20 prompts: 12 won, 4 ties, 3 lost, 1 without a judgement."""
    monkeypatch.chdir(tmp_path)
    winners = ["a"] * 12 + ["tie"] * 4 + ["b"] * 3 + [None]
    lines = [
        {"prompt": f"p{n}", "response_a": "x" * (n + 1), "response_b": "y" * (20 - n), "winner": winner,
         "group": f"g{n % 2}", "generator_a": "new" if n % 4 else "old", "generator_b": "old" if n % 4 else "new"}
        for n, winner in enumerate(winners)
    ]  # fmt: skip
    Path("judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return "judged.jsonl"


def test_the_command_counts_one_model_from_both_sides(judged: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([judged, "model=new", "by=group", "out=rates.json"]) == 0
    out, report = capsys.readouterr().out, json.loads(Path("rates.json").read_text())
    (rate,) = report["rates"]
    assert (rate["model"], rate["against"], rate["prompts"]) == ("new", "old", 19)
    # "old" stands first on prompts 0, 4, 8 (won), 12 (tie) and 16 (lost).
    assert (rate["wins"], rate["ties"], rate["losses"]) == (12 - 3 + 1, 4, 3 - 1 + 3)
    assert rate["win_rate"] == (10 + 2) / 19 and report["unjudged"] == 1
    assert (
        "new against old: win rate 0.632 [" in out and "1 pair without a judgement" in out and "  g0: win rate" in out
    )
    assert sum(group["prompts"] for group in report["by"].values()) == 19
    assert main([judged, "model=old"]) == 0 and "old against new: win rate 0.368" in capsys.readouterr().out


def test_later_rounds_are_drawn_against_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for server_round, won in ((1, 6), (2, 9)):
        lines = [
            {"prompt": f"p{n}", "response_a": "x", "response_b": "yy", "winner": "b" if n < won else "a",
             "generator_a": "run@0", "generator_b": f"run@round-{server_round}"}
            for n in range(10)
        ]  # fmt: skip
        Path(f"{server_round}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn: list[Any] = []
    monkeypatch.setattr("scripts.winrate.winrate_picture", lambda rates, path: drawn.extend(rates))
    assert main(["1.jsonl", "2.jsonl", "picture=rates.png"]) == 0
    assert [(rate["model"], rate["round"], rate["win_rate"]) for rate in drawn] == [("run", 1, 0.6), ("run", 2, 0.9)]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["1.jsonl", "2.jsonl", "picture=rates.png"]) == 0 and "picture: rates.png" in capsys.readouterr().out
    assert Path("rates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("judged.jsonl", "picture=rates.png"), "no model is named MODEL@ROUND: old"),
        (("judged.jsonl", "model=other"), "model=other is none of the generators: old, new"),
        (("judged.jsonl", "by=nothing"), "by=nothing names no column"),
        (("none.jsonl",), "there is no file none.jsonl"),
        (("pairs.jsonl",), "no field 'response_a'; give files that scripts.judge wrote"),
        (("same.jsonl",), "both responses of each pair are of one generator, m"),
        (("null.jsonl",), "null.jsonl: no pair has a judgement"),
        (("number.jsonl",), "response_a is 3; give files that scripts.judge wrote"),
        (("list.jsonl",), "winner is ['a']; give files"),
        (("turns.jsonl",), "prompt is [{'role': 'user'}]; give files"),
        (("judged.jsonl", "out=."), "out=. is a folder; give a file"),
    ],
)
def test_mistakes_are_told_in_one_line(
    judged: str, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "c", "rejected": "r"}\n')
    line = {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "a", "generator_a": "m", "generator_b": "m"}
    Path("same.jsonl").write_text(json.dumps(line) + "\n")
    Path("null.jsonl").write_text(json.dumps({**line, "winner": None}) + "\n")
    Path("number.jsonl").write_text(json.dumps({**line, "response_a": 3}) + "\n")
    Path("list.jsonl").write_text(json.dumps({**line, "winner": ["a"]}) + "\n")
    Path("turns.jsonl").write_text(json.dumps({**line, "prompt": [{"role": "user"}]}) + "\n")
    assert main([*arguments]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count("\n") == 1
