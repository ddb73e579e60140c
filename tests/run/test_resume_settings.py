"""Tests of the settings of a resumed run: what its folder says, and what may be typed beside `resume`."""

import os
import threading
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from fed.config.checks import Request
from fed.config.groups import FaultSettings, ModelSettings
from fed.config.schema import Config, keys
from fed.reports.runs import Run
from fed.tracking import run_folder
from run.resume import FINDS, MAY_CHANGE, differences, resumed
from support.begun_runs import BEGAN, ENVIRONMENT, began, typed

# What the folder says


def test_the_settings_are_those_that_the_run_began_with(tmp_path: Path) -> None:
    folder = began(tmp_path / "run")
    found = resumed(typed(folder))
    expected = replace(BEGAN, resume=str(folder), num_threads=3, cpu_matmul="onednn")
    assert found.config == expected
    assert type(found.config.model) is ModelSettings and type(found.config.faults) is FaultSettings
    assert found.given == {"lr", "comm_round"}  # so that what is checked of typed keys is checked again


def test_what_create_run_folder_writes_can_be_resumed(tmp_path: Path) -> None:
    yaml = OmegaConf.to_yaml(OmegaConf.create(asdict(BEGAN)))
    folder = run_folder.create_run_folder(
        str(tmp_path), "mine", yaml, torch.device("cpu"), "some processor", library=None, given=["lr"]
    )
    found = resumed(typed(folder))
    assert found.config == replace(BEGAN, resume=str(folder), num_threads=torch.get_num_threads())
    assert found.given == {"lr"}
    assert run_folder.newest_run(str(tmp_path), "mine") == folder


def test_a_partitioner_is_found_though_its_module_has_moved(tmp_path: Path) -> None:
    own = {"client_data": ["a.jsonl", "b.jsonl"]}
    partition = {"_target_": "fed.partition.OwnData", **own}
    folder = began(tmp_path / "run", replace(BEGAN, partition=partition, client_num_in_total=2, accuracy_on="client"))
    present = {"_target_": "fed.data.partition.OwnData", **own}
    assert resumed(typed(folder)).config.partition == present
    assert Run(folder).config["partition"] == present  # so that a comparison does not train a finished run again


@pytest.mark.parametrize(
    ("setting", "library", "expected"),
    [("auto", "mkl", "mkl"), ("auto", "onednn", "onednn"), ("auto", None, "auto"), ("mkl", "onednn", "mkl")],
)
def test_the_recorded_library_multiplies_where_it_was_measured(
    setting: str, library: str | None, expected: str, tmp_path: Path
) -> None:
    folder = began(tmp_path / "run", replace(BEGAN, cpu_matmul=setting), library=library)
    assert resumed(typed(folder)).config.cpu_matmul == expected


@pytest.mark.parametrize("setting", [None, 8])
def test_the_recorded_number_of_threads_is_taken(setting: int | None, tmp_path: Path) -> None:
    """The run computed with 3 threads; it may have asked for more than the machine gave."""
    folder = began(tmp_path / "run", replace(BEGAN, num_threads=setting))
    assert resumed(typed(folder)).config.num_threads == 3


# What may be typed


def test_rounds_checkpoints_and_patience_may_change(tmp_path: Path) -> None:
    folder = began(tmp_path / "run")
    changes: dict[str, Any] = {
        "comm_round": 50, "checkpoint_every": 3, "checkpoint_keep": 7, "checkpoint_within_round": False,
        "process_timeout": 5.0, "min_fit_clients": 2, "client_timeout": 60.0,
            "cache_dir": "elsewhere",
    }  # fmt: skip
    assert set(changes) == set(MAY_CHANGE)
    found = resumed(typed(folder, **changes)).config
    assert {key: getattr(found, key) for key in changes} == changes
    assert replace(found, **{key: getattr(BEGAN, key) for key in changes}) == resumed(typed(folder)).config


def test_what_was_not_typed_is_not_changed_to_a_default(tmp_path: Path) -> None:
    folder = began(tmp_path / "run", replace(BEGAN, checkpoint_every=4, process_timeout=9.0))
    found = resumed(typed(folder, comm_round=6)).config
    assert (found.comm_round, found.checkpoint_every, found.process_timeout) == (6, 4, 9.0)


def test_every_other_key_is_refused_by_name(tmp_path: Path) -> None:
    folder = began(tmp_path / "run")
    others = set(keys()) - {*FINDS, *MAY_CHANGE}
    assert {"lr", "seed", "model.name_or_path", "strategy", "faults.nan_rate", "client_num_in_total"} < others
    for key in (*others, "strategy.temp", "loss.delta"):
        with pytest.raises(
            ValueError, match=f"^{key} cannot be given with resume: .* change only .*comm_round.*new run$"
        ):
            resumed(Request(Config(resume=str(folder)), frozenset({"resume", "comm_round", key})))


@pytest.mark.parametrize("key", ["output_dir", "exp_name"])
def test_what_finds_a_run_is_refused_beside_its_folder(key: str, tmp_path: Path) -> None:
    folder = began(tmp_path / "mine" / "run")
    with pytest.raises(
        ValueError, match=rf"^{key} has no effect with resume=.*run, which names the run; leave it out$"
    ):
        resumed(typed(folder, **{key: str(tmp_path)}))


# The newest run


def test_latest_is_the_newest_by_name_whatever_was_touched_last(tmp_path: Path) -> None:
    for exp_name, started in (
        ("mine", "2026-01-02_10-00-00"),
        ("mine", "2026-01-02_10-00-00-1"),
        ("mine", "2025-12-31_23-59-59"),
        ("other", "2026-01-03_00-00-00"),
    ):
        began(tmp_path / exp_name / started, replace(BEGAN, exp_name=exp_name))
    (tmp_path / "mine" / "2027-01-01_00-00-00").mkdir()  # never began: it has no config.yaml
    os.utime(tmp_path / "mine" / "2025-12-31_23-59-59", (2e9, 2e9))
    where = {"output_dir": str(tmp_path)}
    mine = resumed(typed("latest", **where, exp_name="mine")).config
    assert (mine.resume, mine.exp_name) == (str(tmp_path / "mine" / "2026-01-02_10-00-00-1"), "mine")
    with pytest.raises(ValueError, match=r"finds no run in .*/fedpo; give exp_name or its folder"):
        resumed(typed("latest", **where))  # exp_name is fedpo where none is given


def test_of_two_runs_of_one_second_the_later_one_is_taken(tmp_path: Path) -> None:
    first, second = (began(tmp_path / "a" / f"2026-01-02_10-00-00{more}") for more in ("-1", ""))
    os.utime(first, (1e9, 1e9))
    os.utime(second, (2e9, 2e9))
    assert run_folder.newest_run(str(tmp_path), "a") == first


def test_a_run_whose_process_is_being_killed_is_waited_for(tmp_path: Path) -> None:
    folder = began(tmp_path / "a" / "2026-01-02_10-00-00")
    held = ExitStack()
    held.enter_context(run_folder.locked(folder))
    threading.Timer(0.5, held.close).start()
    assert run_folder.newest_run(str(tmp_path), "a") == folder
    held.enter_context(run_folder.locked(folder))
    threading.Timer(0.5, held.close).start()
    with run_folder.locked(folder):
        pass


def test_a_run_that_is_in_use_is_not_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_folder, "PATIENCE", 0.3)
    older, newer = (began(tmp_path / "a" / f"2026-01-0{day}_10-00-00") for day in (2, 3))
    with run_folder.locked(newer):
        assert run_folder.newest_run(str(tmp_path), "a") == older
        with run_folder.locked(older), pytest.raises(ValueError, match="finds no run that is not in use in"):
            run_folder.newest_run(str(tmp_path), "a")
    assert run_folder.newest_run(str(tmp_path), "a") == newer


@pytest.mark.parametrize("exp_name", ["run[1]", "what?", "a*"])
def test_a_name_with_signs_of_a_pattern_is_that_name(exp_name: str, tmp_path: Path) -> None:
    folder = began(tmp_path / exp_name / "2026-01-02_10-00-00")
    began(tmp_path / "ab" / "2026-01-03_10-00-00")
    began(tmp_path / "whatx" / "2026-01-03_10-00-00")
    assert run_folder.newest_run(str(tmp_path), exp_name) == folder


def test_without_a_run_latest_says_where_it_looked(tmp_path: Path) -> None:
    where = tmp_path / "mine"
    with pytest.raises(ValueError, match=f"^resume=latest finds no run in {where}; give exp_name or its folder$"):
        resumed(typed("latest", output_dir=str(tmp_path), exp_name="mine"))


# The same surroundings


def test_nothing_differs_where_nothing_does(tmp_path: Path) -> None:
    assert differences(began(tmp_path / "run"), ENVIRONMENT) == []


def test_what_decides_the_last_bits_is_told_with_both_values(tmp_path: Path) -> None:
    folder = began(tmp_path / "run")
    now = {
        **ENVIRONMENT,
        "processor": "another",
        "threads": 99,
        "platform": "moon",
        "packages": {"torch": "3.0", "numpy": "2.4", "peft": "1"},
    }
    assert differences(folder, now) == [
        "processor some, now another",
        "peft None, now 1",
        "torch 2.13.0, now 3.0",
    ]


def test_an_environment_without_versions_differs_in_them(tmp_path: Path) -> None:
    folder = began(tmp_path / "run", packages=None)
    assert differences(folder, {**ENVIRONMENT, "packages": {"torch": "1"}}) == ["packages None, now {'torch': '1'}"]
