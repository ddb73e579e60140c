"""Tests of `resume=` with wrong and damaged run folders: each is refused with one clear error."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from run.resume import resumed
from support.begun_runs import BEGAN, ENVIRONMENT, began, typed


@pytest.mark.parametrize("name", ["none", "file", "empty"])
def test_a_folder_of_no_run_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    refusal = rf"^resume={tmp_path / name} is not the folder of a run: it has no config.yaml"
    with pytest.raises(ValueError, match=refusal):
        resumed(typed(tmp_path / name))


NO_SETTINGS = r"(?s)config.yaml cannot be read as the settings of a run: .*; start a new run$"
NO_ENVIRONMENT = r"environment.json cannot be read as the environment of a run: .*; start a new run$"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        *(("config.yaml", text, NO_SETTINGS) for text in ("lr: [", "a: b: c", "lr: fast", "unknown_key: 1")),
        *(
            ("config.yaml", text, NO_SETTINGS)
            for text in ("comm_round: 1.5", "model: 3", "\x00", "- 1\n- 2", "just text", "42")
        ),
        *(("environment.json", text, NO_ENVIRONMENT) for text in ("", "{", "[]", "3", "null", '"threads"', "\x00")),
        ("environment.json", '{"threads": 1}', NO_ENVIRONMENT),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_error(name: str, text: str, expected: str, tmp_path: Path) -> None:
    folder = began(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=expected) as error:
        resumed(typed(folder))
    assert type(error.value) is ValueError


@pytest.mark.parametrize("key", ["a key that is gone", "a key to come", "a class that is gone"])
def test_settings_of_another_version_name_the_commit_that_can_resume_them(key: str, tmp_path: Path) -> None:
    folder = began(tmp_path / "run", commit="8e84eec")
    settings = asdict(BEGAN)
    if key == "a key that is gone":
        settings["gone"], told = 1, "'gone' not in 'Config'"
    elif key == "a class that is gone":
        settings["strategy"]["_target_"] = "server.strategies.Gone"
        told = "strategy._target_=server.strategies.Gone cannot be imported"
    else:
        del settings["temp"]
        told = "it lacks temp"
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    with pytest.raises(ValueError, match=f"config.yaml cannot be read as the settings of a run: .*{told}") as error:
        resumed(typed(folder))
    assert str(error.value).endswith("; resume it with commit 8e84eec, with which it began, or start a new run")


def test_settings_that_are_no_text_are_one_clear_error(tmp_path: Path) -> None:
    folder = began(tmp_path / "run")
    (folder / "config.yaml").write_bytes(b"lr: \xff\xfe\n")
    with pytest.raises(ValueError, match="cannot be read as the settings of a run"):
        resumed(typed(folder))


@pytest.mark.parametrize("kept", [0, 15, 40])
def test_settings_that_are_cut_off_are_refused(kept: int, tmp_path: Path) -> None:
    """A run must not resume with the default learning rate."""
    folder = began(tmp_path / "run")
    lines = (folder / "config.yaml").read_text().splitlines(keepends=True)
    (folder / "config.yaml").write_text("".join(lines[:kept]))
    with pytest.raises(ValueError, match=r"config\.yaml"):
        resumed(typed(folder))


@pytest.mark.parametrize("key", ["threads", "library", "given"])
def test_an_environment_without_one_of_its_keys_names_it(key: str, tmp_path: Path) -> None:
    folder = began(tmp_path / "run")
    (folder / "environment.json").write_text(json.dumps({k: v for k, v in ENVIRONMENT.items() if k != key}))
    with pytest.raises(ValueError, match=f"environment.json cannot be read .*'{key}'"):
        resumed(typed(folder))


def test_without_an_environment_or_with_one_of_other_bytes_a_run_is_refused(tmp_path: Path) -> None:
    folder = began(tmp_path / "run")
    (folder / "environment.json").write_bytes(b'{"threads": "\xff"}')
    with pytest.raises(ValueError, match=r"environment.json cannot be read"):
        resumed(typed(folder))
    (folder / "environment.json").unlink()
    with pytest.raises(ValueError, match=r"environment.json cannot be read .*No such file"):
        resumed(typed(folder))


@pytest.mark.parametrize(
    "change",
    [{"given": None}, {"given": 3}, {"given": "lr"}, {"threads": "3"}, {"threads": 0}, {"library": 1}],
    ids=str,
)
def test_an_environment_of_other_kinds_of_values_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    folder = began(tmp_path / "run", **change)
    with pytest.raises(ValueError, match=r"environment.json cannot be read"):
        resumed(typed(folder))
