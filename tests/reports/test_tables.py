import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from fed.reports.budgets import EQUAL, budgets
from fed.reports.runs import Method, Run
from fed.reports.statistics import Difference
from fed.reports.tables import cells, markdown, notes, rows, write_csv
from support.fabricated_runs import fabricate, with_metrics, with_validation


def run(folder: Path, accuracy: Sequence[float], *, mode: str = "federated", seed: int = 0, pairs: int = 100) -> Run:
    """Return a run with this accuracy by round, from round 0 on, on 100 test pairs."""
    made = fabricate(folder, mode=mode, seed=seed, rounds=len(accuracy) - 1, pairs_per_round=pairs, num_pairs=100)
    return with_metrics(made, accuracy=accuracy)


def two_seeds(folder: Path) -> list[Method]:
    """Return the methods a, centralized and local, with seeds 0 and 1 and two rounds of 100 pairs."""
    a = [run(folder / "a-0", [0, 0.68, 0.6]), run(folder / "a-1", [0, 0.5, 0.8], seed=1)]
    central = [
        run(folder / "c-0", [0, 0.5, 0.7], mode="centralized"),
        run(folder / "c-1", [0, 0.8, 0.9], mode="centralized", seed=1),
    ]
    local = [run(folder / f"l-{seed}", [0, 0.5, 0.5], mode="local", seed=seed) for seed in (0, 1)]
    return [Method("a", a), Method("centralized", central), Method("local", local)]


def test_a_row_has_means_and_standard_errors_over_seeds(tmp_path: Path):
    """Final 0.6 and 0.8: mean 0.7, sd 0.1 * sqrt(2), se 0.1. Best on test 0.68 and 0.8: 0.74 and 0.06."""
    row = rows(two_seeds(tmp_path))[0]
    assert (row.method, row.mode, row.seeds, row.num_pairs) == ("a", "federated", (0, 1), 100)
    assert row.accuracy == pytest.approx((0.7, 0.1))
    assert row.best == pytest.approx((0.74, 0.06))


def test_margin_loss_and_log_ratio_are_those_of_the_last_round(tmp_path: Path):
    made = run(tmp_path / "a", [0, 0.5, 0.5])
    made = with_metrics(made, margin=[0, 1, 2], loss=[3, 4, 5], log_ratio=[6, 7, 8])
    [row] = rows([Method("a", [made])])
    assert (row.margin.mean, row.loss.mean, row.log_ratio.mean) == (2, 5, 8)


def test_round_0_is_never_the_best(tmp_path: Path):
    [row] = rows([Method("a", [run(tmp_path / "a", [0.9, 0.5, 0.4])])])
    assert row.best.mean == 0.5


def test_one_seed_has_wilsons_interval(tmp_path: Path):
    """80, and in the best round all, of 100 pairs: of 100 of 100 the lower end is 100 / (100 + 1.96^2)."""
    [row] = rows([Method("a", [run(tmp_path / "a", [0, 1.0, 0.8])])])
    assert cells(row)["accuracy"] == "0.800 [0.711, 0.867]"
    assert cells(row)["best on test"] == "1.000 [0.963, 1.000]"
    assert math.isnan(row.margin.se)


def test_validation_chooses_a_round_whatever_the_test_pairs_say(tmp_path: Path):
    """Validation is best in round 2 of 3, where the test accuracy is 0.5, before its best in round 3."""
    made = with_validation(run(tmp_path / "a", [0, 0.7, 0.5, 0.8]), {"server": [0.0, 0.6, 0.9, 0.9]})
    [row] = rows([Method("a", [made])])
    shown = cells(row)
    assert [*shown][3:6] == ["accuracy", "at validation's best", "best on test"]
    assert [shown[name].split()[0] for name in [*shown][3:6]] == ["0.800", "0.500", "0.800"]


def test_clients_that_train_alone_each_choose_their_round(tmp_path: Path):
    """Client 0 chooses round 1, the others round 2; their test accuracies there have the mean 0.55."""
    made = fabricate(tmp_path / "l", mode="local", seed=0, rounds=2, num_clients=2)
    made = with_validation(made, {"client-0": [0.0, 0.6, 0.5], "client-1": [0.0, 0.6, 0.7]})
    test = {(line.who, line.server_round): line.metrics["accuracy"] for line in made.lines if line.split == "test"}
    assert made.chosen_accuracy == pytest.approx((test["client-0", 1] + test["client-1", 2]) / 2)


def test_without_validation_pairs_nothing_is_chosen(tmp_path: Path):
    [row] = rows([Method("a", [run(tmp_path / "a", [0, 0.5])])])
    assert row.chosen is None and cells(row)["at validation's best"] == "-"


def test_pairs_are_counted_until_95_percent_of_the_centralised_run_of_the_same_seed(tmp_path: Path):
    """Seed 0 aims at 0.95 * 0.7 = 0.665, and a has 0.68 after 100 pairs; seed 1 at 0.855, which it never does."""
    a, central, local = rows(two_seeds(tmp_path))
    assert (a.pairs_to_near, a.num_near, a.num_aims) == (100, 1, 2)
    assert (central.pairs_to_near, central.num_near) == (200, 2)
    assert (local.pairs_to_near, local.num_near, local.num_aims) == (None, 0, 2)
    assert [cells(row)["pairs to 95 %"] for row in (a, central, local)] == ["100 (1 of 2 seeds)", "200", "not reached"]


def test_seeds_without_a_centralised_run_have_nothing_to_aim_at(tmp_path: Path):
    a, central, _ = two_seeds(tmp_path)
    [row, _] = rows([a, Method("centralized", central.runs[:1])])
    assert (row.pairs_to_near, row.num_near, row.num_aims) == (100, 1, 1)
    [row] = rows([a])
    assert (row.pairs_to_near, row.num_aims) == (None, 0)
    assert cells(row)["pairs to 95 %"] == "-"


def test_wall_time_and_traffic_are_means_of_whole_runs(tmp_path: Path):
    made = [run(tmp_path / f"a-{seed}", [0, 0.5], seed=seed) for seed in (0, 1)]
    for one, seconds, sent in zip(made, (10.0, 30.0), (1000, 3000), strict=True):
        summary = {"wall_seconds": seconds, "bytes": {"sent": sent, "received": 500}}
        (one.folder / "summary.json").write_text(json.dumps(summary))
    [row] = rows([Method("a", [Run(one.folder) for one in made])])
    assert (row.wall_seconds, row.traffic) == (20.0, 2500.0)
    assert (cells(row)["wall-clock"], cells(row)["traffic"]) == ("20 s", "2.5 kB")


def test_nothing_travels_without_a_federation(tmp_path: Path):
    _, central, local = rows(two_seeds(tmp_path))
    assert central.traffic is local.traffic is None
    assert cells(local)["traffic"] == "-"


def test_clients_that_train_alone_have_a_spread_and_others_none(tmp_path: Path):
    """0.02 and 0.04 in the last round of the two seeds: 0.03."""
    a, central, local = two_seeds(tmp_path)
    told = [with_metrics(own, accuracy_sd=[0, 0.5, sd]) for own, sd in zip(local.runs, (0.02, 0.04), strict=True)]
    found = rows([a, central, Method("local", told)])
    assert [row.clients_sd for row in found] == [None, None, pytest.approx(0.03)]
    assert (
        "local: means over clients that train alone; the standard deviation of its accuracy over clients is 0.030."
        in (notes(found))
    )


def test_a_metric_that_is_not_finite_is_called_so(tmp_path: Path):
    made = with_metrics(run(tmp_path / "a", [0, 0.5]), margin=[0, None])
    [row] = rows([Method("a", [made])])
    assert cells(row)["margin"] == "not finite"


def test_a_run_that_was_never_evaluated_after_training_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="a-0 has no evaluation on test pairs after training"):
        rows([Method("a", [run(tmp_path / "a-0", [0])])])


def test_a_run_without_accuracies_is_refused(tmp_path: Path):
    """As an online run on prompts without responses is."""
    made = with_metrics(run(tmp_path / "a-0", [0, 0.5]), accuracy=[None, None])
    with pytest.raises(ValueError, match="a-0 measured no accuracy, by which runs are compared"):
        rows([Method("a", [made])])


def test_the_csv_has_a_line_for_each_evaluation(tmp_path: Path):
    methods = two_seeds(tmp_path)
    write_csv(methods, tmp_path / "compare.csv")
    with (tmp_path / "compare.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 2 * 3
    first = lines[1]
    keys = ("method", "mode", "seed", "round", "pairs", "seconds", "accuracy")
    assert [first[key] for key in keys] == ["a", "federated", "0", "1", "100", "17.0", "0.68"]
    assert list(first)[:12] == [*keys, "accuracy_low", "accuracy_high", "margin", "loss", "log_ratio"]
    point = methods[0].runs[0].points[1]
    assert {name: float(first[name]) for name in point.metrics} == point.metrics  # every digit is kept
    assert first["accuracy_sd"] == ""


def test_the_csv_has_the_spread_of_clients_last(tmp_path: Path):
    methods = two_seeds(tmp_path)
    write_csv(methods, tmp_path / "compare.csv")
    with (tmp_path / "compare.csv").open(encoding="utf-8", newline="") as file:
        line = list(csv.DictReader(file))[-1]
    assert (line["method"], line["round"], line["accuracy_low"]) == ("local", "2", "")
    spread = methods[2].runs[1].points[2].spread
    assert {name: float(line[f"{name}_sd"]) for name in spread} == spread
    assert all(key.endswith("_sd") for key in list(line)[-len(spread) :])


def test_equal_budgets_are_said_to_be_equal(tmp_path: Path):
    assert budgets(two_seeds(tmp_path)) == [EQUAL]


def test_unequal_budgets_are_told_where_they_differ_most(tmp_path: Path):
    """100 pairs a round against 90: 100 and 90, then 200 and 180."""
    first = Method("first", [run(tmp_path / "a", [0, 0.5, 0.5])])
    same = Method("same", [run(tmp_path / "b", [0, 0.5, 0.5])])
    less = Method("less", [run(tmp_path / "c", [0, 0.5, 0.5], pairs=90)])
    assert budgets([first, same, less]) == [
        "less and first had trained different numbers of pairs at 2 of 3 evaluations, furthest apart at round 2 of "
        "seed 0: 180 and 200."
    ]


def test_evaluations_after_other_rounds_are_told(tmp_path: Path):
    first = Method("first", [run(tmp_path / "a", [0, 0.5, 0.5])])
    longer = Method("longer", [run(tmp_path / "b", [0, 0.5, 0.5, 0.5])])
    assert budgets([first, longer]) == ["longer and first were not evaluated after the same rounds."]


def test_a_seed_that_one_method_lacks_is_no_unequal_budget(tmp_path: Path):
    a, central, _ = two_seeds(tmp_path)
    assert budgets([a, Method("centralized", central.runs[:1])]) == [EQUAL]


def test_the_text_shows_table_differences_budgets_and_commands(tmp_path: Path):
    methods = two_seeds(tmp_path)
    found = {("a", "centralized"): Difference(-0.1, -0.2, -0.05, 200, 2)}
    text = markdown(methods, found, ["python scripts/compare.py seeds=[0,1]"], title="mine")
    lines = text.splitlines()
    assert lines[0] == "# mine"
    assert lines[2].startswith(
        "| method | mode | seeds | accuracy | at validation's best | best on test | margin | loss | log-ratio |"
    )
    assert lines[4].startswith("| a | federated | 0, 1 | 0.700 ± 0.100 | - | 0.740 ± 0.060 |")
    assert "- a against centralized: centralized is better than a by 0.100 [0.050, 0.200] (2 seeds, 200 pairs)" in lines
    assert f"- {EQUAL}" in lines
    assert text.endswith("```sh\npython scripts/compare.py seeds=[0,1]\n```\n")


def test_the_text_says_which_uncertainty_each_method_has(tmp_path: Path):
    a, central, _ = two_seeds(tmp_path)
    said = notes(rows([a, Method("centralized", central.runs[:1])]))
    assert said[:2] == [
        "± of a: standard error over seeds, sd / sqrt(n).",
        "[ ] of centralized: 95 % Wilson interval of an accuracy on one seed's 100 test pairs.",
    ]


def test_brackets_are_explained_wherever_they_stand(tmp_path: Path):
    """Both seeds were once right on all pairs, and ended apart."""
    made = [run(tmp_path / f"a-{seed}", [0, 1.0, last], seed=seed) for seed, last in enumerate((0.5, 0.7))]
    [row] = rows([Method("a", made)])
    assert cells(row)["accuracy"] == "0.600 ± 0.100" and cells(row)["best on test"] == "1.000 [0.963, 1.000]"
    assert notes([row])[1].startswith("[ ] of a: 95 % Wilson interval")


def test_a_bar_in_a_name_does_not_split_its_cell(tmp_path: Path):
    text = markdown([Method("a|b", two_seeds(tmp_path)[0].runs)], {}, [])
    assert "| a\\|b | federated |" in text


def test_one_method_has_no_paired_differences(tmp_path: Path):
    assert "Paired differences" not in markdown(two_seeds(tmp_path)[:1], {}, [])


@pytest.mark.parametrize(
    ("seconds", "traffic", "shown"),
    [
        (0.5, 0.0, ("0.5 s", "0 B")),
        (99.4, 999.0, ("99.4 s", "999 B")),
        (150.0, 1e6, ("2.5 min", "1 MB")),
        (9000.0, 2.5e9, ("2.5 h", "2.5 GB")),
    ],
)
def test_time_and_bytes_have_a_unit_that_fits(tmp_path: Path, seconds: float, traffic: float, shown: tuple[str, str]):
    made = run(tmp_path / "a", [0, 0.5])
    summary = {"wall_seconds": seconds, "bytes": {"sent": traffic, "received": 0}}
    (made.folder / "summary.json").write_text(json.dumps(summary))
    [row] = rows([Method("a", [Run(made.folder)])])
    assert (cells(row)["wall-clock"], cells(row)["traffic"]) == shown
