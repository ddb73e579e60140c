"""The fixtures `policy` and `command_line`, and the environment and order of all tests.

What takes seconds to import is imported where it is used: a process that only hands out tests need not wait for it.
"""

import gc
import os

os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", HF_HUB_OFFLINE="1")
os.environ.update(RAY_worker_niceness="0")  # by default other tests would starve workers of Ray

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.command_line import CommandLine, Result
from support.devices import DEVICES
from support.markers import SERVERS, mark

if TYPE_CHECKING:
    import torch

    from fed.model.policy import Policy

pytest_plugins = ["support.federate"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the markers of what it uses, and begin with servers: while one test waits others compute."""
    for item in items:
        if isinstance(item, pytest.Function):
            mark(item)
    items.sort(key=lambda item: item.get_closest_marker(SERVERS) is None)


def pytest_collection_finish() -> None:
    """Use one thread, share compositions of settings, and exempt all present objects from garbage collection."""
    import torch

    from support.compositions import share_compositions

    torch.set_num_threads(1)
    share_compositions()
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Undo `gc.freeze`: Hypothesis may be imported only now, and `gc.get_referrers` sees no frozen object."""
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where torch finds none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a GPU")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> "torch.device":
    """Return the CPU, and in another test a GPU."""
    import torch

    return torch.device(request.param)


@pytest.fixture
def policy() -> "Policy":
    """Return a two-layer Llama of a few thousand random weights over 31 tokens, embeddings tied, always the same."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fed.model.demo import demo_tokenizer
    from fed.model.policy import Policy

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return Policy(LlamaForCausalLM(config), demo_tokenizer(), torch.device("cpu"))


@pytest.fixture
def command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[CommandLine]:
    """Return a function that runs `python main.py ...` in this process, each call in a folder of its own."""
    import torch
    from hydra.core.global_hydra import GlobalHydra

    from run import experiment
    from support.launched import run_main

    calls = iter(range(100))
    threads = torch.get_num_threads()
    monkeypatch.setattr(experiment, "pictures", lambda run_dir: run_dir / "curves.png")

    def call(*arguments: str) -> Result:
        folder = tmp_path / f"call-{next(calls)}"
        folder.mkdir()
        where = {"output_dir": "runs", "cache_dir": str(tmp_path / "cache")}
        typed = {argument.partition("=")[0] for argument in arguments}
        places = [f"{key}={value}" for key, value in where.items() if key not in typed]
        capsys.readouterr()
        code = run_main(monkeypatch, folder, *arguments, *places)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err, folder)

    yield call
    GlobalHydra.instance().clear()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
