from statistics import fmean

import pytest

from fed.reports.differences import differing, environments
from fed.reports.page_clients import COLOURS, colour_limits, constants, heat_maps, partitions
from fed.reports.page_curves import curves
from fed.reports.page_figures import literal
from fed.reports.responses import CHOSEN, REFERENCE, final_samples
from fed.reports.runs import Method
from fed.reports.style import styles
from support.fabricated_runs import fabricate
from support.foreign_runs import EVIL, NAMES, change, make_methods, set_groups


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    return make_methods(tmp_path_factory.mktemp("runs"))


def line_of(figure, name):
    """Return the trace that shows texts when hovered."""
    return next(trace for trace in figure["data"] if "hovertext" in trace and trace["meta"]["method"] == name)


def test_a_line_is_the_mean_over_seeds_and_its_band_the_standard_error(methods):
    """For two values a, b the standard error is |a - b| / 2: sd = |a - b| / sqrt(2), over sqrt(2)."""
    figure = curves(methods)[0].figure
    lower, upper, line = (trace for trace in figure["data"] if trace["meta"]["method"] == "fedpo")
    for i, server_round in enumerate(range(1, 7)):  # at round 0 accuracy measures nothing
        a, b = (run.points[server_round].metrics["accuracy"] for run in methods[0].runs)
        assert line["y"][i] == pytest.approx((a + b) / 2)
        assert upper["y"][i] - line["y"][i] == pytest.approx(abs(a - b) / 2)
        assert line["y"][i] - lower["y"][i] == pytest.approx(abs(a - b) / 2)
        assert f"accuracy {(a + b) / 2:.4g} ± {abs(a - b) / 2:.2g}" in line["hovertext"][i]


def test_the_first_round_is_drawn_of_all_but_accuracy(methods):
    firsts = {plot.title.split()[0]: line_of(plot.figure, "fedpo")["meta"]["rounds"][0] for plot in curves(methods)}
    assert firsts == {"accuracy": 1, "reward": 0, "loss": 0, "log": 0}


def test_a_curve_knows_its_place_on_all_axes(methods):
    xs = line_of(curves(methods)[1].figure, "centralized")["meta"]
    points = list(zip(*(run.points for run in methods[2].runs), strict=True))
    assert xs["rounds"] == list(range(7))
    assert xs["pairs"] == [fmean(point.pairs for point in both) for both in points]
    assert xs["time"] == [fmean(point.seconds for point in both) for both in points]


def test_clients_that_train_alone_have_a_band_of_their_spread(methods):
    line, spread = curves(methods)[0].figure["data"][-1], curves(methods)[0].figure["data"][-4]
    expected = fmean(run.points[1].spread["accuracy"] for run in methods[3].runs)
    assert spread["y"][0] - line["y"][0] == pytest.approx(expected)


def test_a_single_round_of_a_single_seed_has_an_error_bar(tmp_path):
    run = fabricate(tmp_path / "run", mode="centralized", seed=0, rounds=1)
    line = curves([Method("centralized", [run])])[0].figure["data"][-1]
    measured = run.points[1].metrics
    assert line["error_y"]["array"] == [pytest.approx(measured["accuracy_high"] - measured["accuracy"])]
    told = f"accuracy {measured['accuracy']:.4g} [{measured['accuracy_low']:.4g}, {measured['accuracy_high']:.4g}]"
    assert told in line["hovertext"][0]
    assert line["error_y"]["arrayminus"] == [pytest.approx(measured["accuracy"] - measured["accuracy_low"])]


def test_many_methods_look_different():
    names = [f"method {i}" for i in range(28)]
    assert len(set(styles(names).values())) == len(names)


def test_a_shared_partition_is_drawn_once_with_its_counts(methods):
    (plot,) = partitions(methods)
    assert plot.description == (
        "4 clients with 80 pairs each, 320 in all, of 3 groups; those that clients hold out are counted."
    )
    counts = {trace["name"]: trace["x"] for trace in plot.figure["data"]}
    assert counts == {literal(EVIL): [60, 0, 80, 0], "b": [20, 80, 0, 0], "(no group)": [0, 0, 0, 80]}


def test_partitions_that_differ_are_drawn_each(methods, tmp_path):
    other = Method("other", [fabricate(tmp_path / "other", mode="federated", seed=0, num_clients=2)])
    assert [plot.title for plot in partitions([*methods[:2], other])] == [", ".join(NAMES[:2]), "other"]


def test_many_groups_are_drawn_as_the_largest_and_the_rest(tmp_path):
    run = fabricate(tmp_path / "run", mode="federated", seed=0, num_clients=1)
    set_groups(run.folder, {f"group {i:02}": 100 - i for i in range(12)})
    (plot,) = partitions([Method("fedpo", [run])])
    rest = plot.figure["data"][-1]
    assert len(plot.figure["data"]) == len(plot.legend) == len(COLOURS) + 1
    assert (rest["name"], rest["x"]) == ("4 other groups", [92 + 91 + 90 + 89])


def test_weights_are_drawn_and_a_constant_decay_is_told(methods):
    plots = heat_maps(methods)
    assert [plot.title for plot in plots] == [f"{name}: weight in the average" for name in NAMES[:2]]
    of_client, of_round = 2, 1
    weights = methods[0].runs[0].of_clients("aggregate", "weight")
    assert plots[0].figure["data"][0]["z"][of_client][of_round - 1] == weights[of_client][of_round]
    assert constants(methods)[0] == "fedpo: decay is 0.995 for every client in every round."


def test_nearly_equal_weights_have_nearly_one_colour(methods):
    """Of 4 clients each has about 0.25: colours reach from 0 to 0.5, so that 0.25 lies in the middle."""
    heat = heat_maps(methods)[0].figure["data"][0]
    values = [value for line in heat["z"] for value in line]
    assert (heat["zmin"], heat["zmax"]) == (0.0, pytest.approx(0.5))
    assert max(values) - min(values) < 0.1 * (heat["zmax"] - heat["zmin"])
    assert heat["texttemplate"] == "%{z:.3f}", "small differences are read as numbers"


def test_colours_reach_as_far_as_the_values():
    assert colour_limits([0.25, 0.75], 0.5) == (0.0, 0.75)
    assert colour_limits([-0.25, 0.5], 1.0) == (-0.25, 1.0)


def test_a_client_that_took_no_part_leaves_a_gap(tmp_path):
    run = fabricate(tmp_path / "run", mode="federated", seed=0, rounds=2)
    lines = (run.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"round": 2, "who": "client-1"' not in line]
    (run.folder / "metrics.jsonl").write_text("".join(kept))
    (plot,) = heat_maps([Method("fedpo", [run])])
    assert [[z is None for z in row] for row in plot.figure["data"][0]["z"]] == [
        [False] * 2,
        [False, True],
        *[[False] * 2] * 2,
    ]


def test_samples_show_the_reference_once_and_each_methods_last_round(methods):
    first, second = final_samples(methods)
    assert "0 + 0" in first.prompt and "1 + 1" in second.prompt
    assert [response.method for response in first.responses] == [None, None, *NAMES]
    assert [response.label for response in first.responses[:2]] == [CHOSEN, REFERENCE]
    assert first.responses[0].text == " 0." and first.responses[2].text == f"{EVIL} server says 0 & means it, round 6."
    assert first.responses[-1].label == "local, client-0, round 6"


def test_settings_that_differ_are_shown_but_not_those_of_the_run(methods):
    assert differing(methods) == [
        ("lr", ["0.0001", "1e-05", "1e-06", "1e-07"]),
        ("mode", ["federated", "federated", "centralized", "local"]),
    ]


def test_environments_of_all_runs_are_told_once(methods, tmp_path):
    other = fabricate(tmp_path / "other", mode="federated", seed=0)
    change(other.folder / "environment.json", lambda row: {**row, "processor": "another", "commit": None})
    facts = dict(environments([*methods, Method("other", [other])]))
    assert facts["processor"] == "a processor; another"
    assert facts["commit"] == f"{'0' * 40}; unknown"
    assert facts["torch"] == "2.13.0"
