"""Runs of one process and of several, and saved models, for all tests of split models."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from fed.config.groups import ModelSettings
from run import experiment
from support.launched import Ended, run_main
from support.ranks import in_ranks
from support.split_models import (
    Outcome,
    Saved,
    save,
    tokenizer,
    train,
)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run `train` in this process."""
    monkeypatch.setattr(experiment, "pictures", lambda folder: folder / "curves.png")  # they take longer than training
    return lambda model, **how: train(tmp_path / f"alone-{len(list(tmp_path.iterdir()))}", model, **how)


@pytest.fixture
def together(alone: Callable[..., Outcome], tmp_path: Path) -> Callable[..., list[Outcome]]:
    """Run `train` in several processes."""
    return lambda count, model, **how: in_ranks(count, train, tmp_path / "together", model, **how)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Return a function that makes settings to load a model of a family."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer(31).save_pretrained(folder)

    def settings(family: str, **changes: Any) -> ModelSettings:
        if not (folder / family).exists():
            save(folder / family, family)
        return ModelSettings(name_or_path=str(folder / family), tokenizer_name_or_path=str(folder), **changes)

    return settings


@pytest.fixture
def one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Iterator[Callable[..., Ended]]:
    """Run `python main.py ...` in this process."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(experiment, "pictures", lambda folder: folder / "curves.png")

    def call(*arguments: str) -> Ended:
        folder = tmp_path / f"one-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        code = run_main(monkeypatch, folder, *arguments)
        return Ended(folder, code, *capsys.readouterr(), [])

    yield call
    GlobalHydra.instance().clear()
    torch.set_num_threads(threads)
