"""`python scripts/compare.py`: it compares small runs, runs only missing ones, and refuses mistakes."""

import csv
import html
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from matplotlib.image import imread
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG

from fed.reports.runs import Run
from scripts import compare
from scripts.compare_runs import Wanted, method_arguments, reads
from support.forked import Fork

ROOT = Path(__file__).parents[2]
SMALL = [
    *["client_num_in_total=3", "comm_round=2", "n_train_examples=30", "n_test_examples=12", "max_length=112"],
    *["checkpoint_within_round=false", "exp_name=small", "output_dir=out", "cache_dir=cache"],
]
METHODS = ["strategies=[fedpo,fedavg,fedpo temp=5]", "modes=[federated,centralized,local]", "seeds=[0,1]"]


def started(folder: Path, *arguments: str) -> Fork:
    command = [sys.executable, ROOT / "scripts" / "compare.py", *arguments]
    return Fork(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    with started(folder, *arguments) as process:
        out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which five methods were compared."""
    folder = tmp_path_factory.mktemp("compared")
    done = call(folder, *METHODS, *SMALL, "temp=2", "sample_during_eval=true", "n_eval_model_samples=2")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_help_lists_the_options_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["exp_name=x", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: python scripts/compare.py OPTION=VALUE")
    for default in ("modes=[federated,centralized,local]", "strategies=[fedpo,fedavg]", "seeds=[0,1,2]"):
        assert default in out
    assert "runs_at_a_time=1  " in out and "report.html" in out


def runs(folder: Path) -> dict[str, Run]:
    return {path.parent.name: Run(path) for path in sorted(folder.glob("out/small/runs/*/*"))}


def test_every_method_runs_with_every_seed_and_what_it_has_a_use_for(compared: Path) -> None:
    found = runs(compared)
    methods = ("centralized", "fedavg", "fedpo", "fedpo-temp-5", "local")
    assert sorted(found) == [f"{name}-seed{seed}" for name in methods for seed in (0, 1)]
    assert all(run.finished for run in found.values())
    assert found["fedpo-seed1"].config["strategy"]["temp"] == 2 == found["centralized-seed1"].config["temp"] * 20
    assert found["fedpo-temp-5-seed1"].config["strategy"]["temp"] == 5
    assert "temp" not in found["fedavg-seed1"].config["strategy"]


def test_methods_of_a_seed_share_test_pairs_budgets_and_references(compared: Path) -> None:
    found = runs(compared)
    for seed in (0, 1):
        own = [run for run in found.values() if run.seed == seed]
        assert len({tuple(run.test_pairs) for run in own}) == 1
        assert len({tuple((point.server_round, point.pairs) for point in run.points) for run in own}) == 1
        assert len({tuple(tuple(client["rows"]) for client in run.partition["clients"]) for run in own}) == 1
    columns = list((compared / "cache" / "reference").glob("*.npy"))
    # Training, validation, test, three clients' held-out pairs, and those together, where one client holds them.
    assert len(columns) == 2 * 7, "each of them once per seed, not once per run"


def test_the_files_tell_what_the_runs_measured(compared: Path) -> None:
    folder, found = compared / "out" / "small", runs(compared)
    with (folder / "compare.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 * 3
    for row in rows:
        name = f"{row['method'].replace(' ', '-').replace('=', '-')}-seed{row['seed']}"
        point = found[name].points[int(row["round"])]
        assert float(row["accuracy"]) == point.metrics["accuracy"] and int(row["pairs"]) == point.pairs
    text = (folder / "compare.md").read_text()
    mean = sum(found[f"fedpo-seed{seed}"].points[-1].metrics["accuracy"] for seed in (0, 1)) / 2
    assert f"| fedpo | federated | 0, 1 | {mean:.3f} ±" in text
    assert "All methods had trained the same number of pairs" in text
    assert "python main.py mode=federated strategy=fedpo client_num_in_total=3" in text
    assert imread(folder / "compare.png").std() > 0
    page = (folder / "report.html").read_text()
    assert all(name in page for name in ("fedpo temp=5", "centralized", "local", "Human:"))


def test_tensorboard_overlays_the_runs_with_their_settings(compared: Path) -> None:
    """Read as TensorBoard reads a folder, links included."""
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(compared / "out" / "small" / "tensorboard")).Reload()
    assert sorted(multiplexer.Runs()) == sorted(runs(compared))
    for name, run in runs(compared).items():
        values = [(event.step, event.value) for event in multiplexer.Scalars(name, "test/accuracy")]
        untied = [point for point in run.points if point.metrics["ties"] < 1]  # all of them tie before training
        assert values == [(p.server_round, pytest.approx(p.metrics["accuracy"])) for p in untied]
        assert SESSION_START_INFO_TAG in multiplexer.GetAccumulator(name).summary_metadata


def test_finished_runs_are_used_again_and_only_what_is_missing_runs(compared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(compared, folder, symlinks=True)
    shutil.rmtree(folder / "out/small/runs/fedavg-seed1")
    before = runs(folder)
    more = ["sample_during_eval=true", "n_eval_model_samples=2", "temp=2"]
    again = call(folder, *METHODS, *SMALL, *more, "runs_at_a_time=2")
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count("finished before") == 9 and again.stdout.count("main.py mode=") == 1
    lines = again.stdout.splitlines()
    assert lines[:2] == ["checking the settings of 10 runs ...", "10 runs, 1 to do"]
    assert any(line.startswith("[fedavg-seed1] run 4 of 10: python main.py mode=federated") for line in lines)
    assert "drawing the report ..." in lines and any(line.startswith("fedpo temp=5  accuracy 0.") for line in lines)
    report = folder / "out/small/report.html"
    assert html.escape(lines[-2]) in report.read_text() and lines[-1] == str(report)
    assert re.search(r"(has|have) the (highest|same) .*accuracy on the test pairs, ", lines[-2])
    after = runs(folder)
    assert {name: run.folder for name, run in before.items()}.items() < {n: r.folder for n, r in after.items()}.items()
    kept = (compared / "out/small/runs/").glob("fedavg-seed1/*/margins.jsonl")
    assert after["fedavg-seed1"].folder.joinpath("margins.jsonl").read_bytes() == next(kept).read_bytes()
    other = call(folder, "modes=[centralized]", "seeds=[0]", *SMALL, *more[:2], "lr=1e-3")
    assert other.returncode == 0 and "finished before" not in other.stdout, "another learning rate is another run"


def wait_for(found: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


LONGER = ["modes=[federated]", "strategies=[fedavg]", "seeds=[0]", *SMALL, "comm_round=6"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a comparison that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert call(folder, *LONGER).returncode == 0
    return folder


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_comparison_that_is_stopped_goes_on_where_it_was(whole: Path, tmp_path: Path, number: int, code: int) -> None:
    with started(tmp_path, *LONGER) as process:
        wait_for(lambda: list(tmp_path.glob("out/small/runs/*/*/checkpoints/round-2")))
        process.send_signal(number)
        _, err = process.communicate(timeout=240)
    assert process.returncode == code and "are kept; continue with: python scripts/compare.py" in err, err
    assert not next(iter(runs(tmp_path).values())).finished
    done = call(tmp_path, *LONGER)
    assert done.returncode == 0 and "resume=" in done.stdout, done.stdout + done.stderr
    expected, found = ((next(iter(runs(f).values())).folder / "margins.jsonl") for f in (whole, tmp_path))
    assert expected.read_bytes() == found.read_bytes()


def test_a_run_that_fails_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    done = call(tmp_path, "modes=[centralized]", "seeds=[0]", *SMALL, "datasets=[files]", "data_dir=none.jsonl")
    assert done.returncode == 1 and "centralized-seed0 failed, see above" in done.stderr
    assert "[centralized-seed0] error: data_dir=none.jsonl" in done.stdout
    assert not (tmp_path / "out" / "small" / "report.html").exists()


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("modes=[federated,centralised]", "centralised is unknown nearest: centralized"),
        ("modes=[]", "modes=[] a list modes=[federated]"),
        ('strategies=[""]', "a list without repetitions strategies=[fedpo]"),
        ("seeds=[]", "seeds=[] is refused e.g. seeds=[0]"),
        ("seeds=[0,x]", "seeds=[0,x] is of the wrong type; expected whole numbers"),
        ("seeds=[0,-1]", "seeds=-1 is too small"),
        ("seeds=[1,1]", "seeds=[1,1] without repetitions"),
        ("runs_at_a_time=0", "runs_at_a_time=0 at least 1"),
        ("strategies=[fedpp]", "strategy=fedpp is unknown nearest: fedpo"),
        ("exp_name=../other", "exp_name=../other cannot be the name of a folder"),
        ("strategy=fedavg", "strategy is refused use modes, strategies, seeds"),
        ("seed=3", "seed is refused"),
        ("--multirun", "'--multirun' is not a setting"),
        ("temp=x", "temp=x is of the wrong type"),
        ("learning_rate=1", "use lr"),
        ("modes=[centralized] strategies=[fedavg]", "strategies has no effect"),
        ("modes=[centralized] temp=1", "temp has no effect on any of these methods"),
        ("strategies=[fedavg] temp=1", "temp has no effect on any of these methods"),
        ("experiment=temp_sweep", "experiment= names a sweep"),
        ("clients_per_round=2", "clients_per_round has no counterpart in mode=local"),
        ("modes=[federated] strategies=[fedavg,fedavg temp=1]", "temp has no effect with strategy=fedavg"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_runs(
    typed: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    arguments = [
        part.replace("fedavg_temp", "fedavg temp") for part in typed.replace("fedavg temp", "fedavg_temp").split()
    ]
    assert compare.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert all(word in error for word in words.split()), error
    assert not list(tmp_path.iterdir())


def test_a_finished_run_is_preferred_to_a_newer_one_that_was_cut_off_and_damage_is_passed_over(tmp_path: Path) -> None:
    wanted = Wanted("centralized", 0, ("mode=centralized", "seed=0"), tmp_path / "centralized-seed0")
    assert wanted.found() is None
    text = OmegaConf.to_yaml(OmegaConf.create({**wanted.config, "num_threads": 7, "output_dir": "elsewhere"}))
    for number, (settings, ends) in enumerate([(text, True), (text, False), ("a: [", True), ("seed: 1", True)]):
        folder = wanted.folder / str(number)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(settings)
        if ends:
            (folder / "summary.json").write_text("{}")
    found = wanted.found()
    assert found is not None and found.folder.name == "0"
    (found.folder / "summary.json").unlink()
    found = wanted.found()
    assert found is not None and found.folder.name == "1"
    assert wanted.command(found) == ["main.py", f"resume={wanted.folder / '1'}"]


def test_a_method_gets_the_settings_it_reads() -> None:
    typed = ["temp=1", "lr=2", "strategy.eta=3", "faults.dropout_rate=0.1", "clients_per_round=2"]
    assert method_arguments("federated", "fedpo", ["temp=5"], typed) == [
        *["mode=federated", "strategy=fedpo", "lr=2", "faults.dropout_rate=0.1", "clients_per_round=2", "temp=5"]
    ]
    assert method_arguments("federated", "fedadam", [], typed) == [
        *["mode=federated", "strategy=fedadam", "lr=2", "strategy.eta=3", "faults.dropout_rate=0.1"],
        "clients_per_round=2",
    ]
    assert method_arguments("centralized", "centralized", [], typed) == [
        "mode=centralized",
        "lr=2",
        "clients_per_round=2",
    ]


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "strategy").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_a_strategy_reads_is_what_its_file_says(path: Path) -> None:
    assert reads("federated", path.stem, "temp") == ("fedpo" in path.stem)
    assert reads("federated", path.stem, "lr") and reads("local", path.stem, "lr")
    assert not reads("centralized", path.stem, "temp") and not reads("local", path.stem, "strategy.eta")
    assert reads("federated", path.stem, "privacy") and not reads("centralized", path.stem, "privacy.delta")
