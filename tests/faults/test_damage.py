"""A damaged checkpoint is found and named, and the run resumes from the one before it."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from support.cut_off import random_of
from support.separate_runs import SMALL, call, only_run, outcome

pytestmark = pytest.mark.faults

NEWEST = Path("checkpoints", "round-3")
FILES = (
    *(f"client-{client}-0.safetensors" for client in range(3)),
    "process-0.safetensors",
    "weights/shard-00001-model-00001-of-00001.safetensors",
)
DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "cut off": lambda path, rng: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path, rng: path.write_bytes(b""),
    "removed": lambda path, rng: path.unlink(),
    "one bit turned": lambda path, rng: turn_bit(path, rng.randrange(8 * path.stat().st_size)),
}


def turn_bit(path: Path, number: int) -> None:
    content = bytearray(path.read_bytes())
    content[number // 8] ^= 1 << number % 8
    path.write_bytes(content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run that keeps its clients' optimizers; every tensor file is in `FILES`."""
    folder = tmp_path_factory.mktemp("finished")
    ended = call(folder, *SMALL, "client_optimizer=persist")
    run = only_run(folder)
    assert ended.code == 0 and run is not None, ended.text
    newest = run / NEWEST
    assert sorted(str(path.relative_to(newest)) for path in newest.rglob("*.safetensors")) == sorted(FILES)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_checkpoint_is_named_and_the_run_ends_the_same(
    tmp_path: Path, finished: Path, file: str, damage: str
) -> None:
    whole = only_run(finished)
    assert whole is not None
    folder = tmp_path / "damaged"
    shutil.copytree(finished, folder, symlinks=True)
    run = folder / whole.relative_to(finished)
    DAMAGES[damage](run / NEWEST / file, random_of("damage", file, damage))
    ended = call(folder, "resume=latest", "output_dir=runs")
    assert "is damaged" in ended.text and Path(file).name in ended.text, ended.text[-2000:]
    assert ended.code == 0 and outcome(run) == outcome(whole), ended.text[-2000:]
