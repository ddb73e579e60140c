"""The number of threads is measured, kept, and used; libraries let waiting threads sleep."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fed.cpu.threads import choose_threads
from support.command_line import CommandLine
from support.good_inputs import save_gpt2

ROOT = Path(__file__).parents[2]
WATCH = """
import os, sys

class Watch:
    def find_spec(self, name, *_):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"))

sys.meta_path.insert(0, Watch())
"""


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Leave the number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Step:
    """A step that takes as many milliseconds as a test says, by number of threads."""

    def __init__(self, milliseconds: dict[int, float]) -> None:
        self.milliseconds, self.calls = milliseconds, 0

    def __call__(self) -> None:
        self.calls += 1
        time.sleep(self.milliseconds[torch.get_num_threads()] / 1000)


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [({1: 10, 2: 10}, 1), ({1: 10, 2: 30}, 1), ({1: 30, 2: 10}, 2), ({1: 40, 2: 20, 3: 10}, 3), ({1: 11, 2: 10}, 1)],
)
def test_the_fewest_threads_that_are_not_clearly_slower_are_chosen(
    tmp_path: Path, milliseconds: dict[int, float], chosen: int
) -> None:
    choice = choose_threads(Step(milliseconds), max(milliseconds), cache_dir=str(tmp_path), what="a step")
    assert choice.threads == torch.get_num_threads() == chosen
    assert str(choice).startswith(f"{chosen} thread") and all(
        f" with {n}" in str(choice) for n in {*milliseconds} - {chosen}
    )


def test_a_choice_is_kept_for_the_same_step_on_the_same_machine(tmp_path: Path) -> None:
    first = choose_threads(Step({1: 1, 2: 9}), 2, cache_dir=str(tmp_path), what="a step")
    again, other = Step({1: 9, 2: 1}), Step({1: 9, 2: 1})
    assert choose_threads(again, 2, cache_dir=str(tmp_path), what="a step") == first and again.calls == 0
    assert choose_threads(other, 2, cache_dir=str(tmp_path), what="another").threads == 2 and other.calls > 0


@pytest.mark.parametrize(
    "choice",
    [
        {"threads": 0, "milliseconds": {}},
        {"threads": "2", "milliseconds": {}},
        {"threads": True, "milliseconds": {}},
        {"threads": 64, "milliseconds": {"1": 3.0, "2": 1.0}},
        {"threads": 1, "milliseconds": [3.0]},
        {"threads": 1, "milliseconds": {"1": "fast"}},
    ],
)
def test_a_kept_choice_that_is_none_is_measured_anew(tmp_path: Path, choice: dict[str, object]) -> None:
    choose_threads(Step({1: 1, 2: 9}), 2, cache_dir=str(tmp_path), what="a step")
    file = tmp_path / "threads.json"
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: choice}))
    again = Step({1: 1, 2: 9})
    found = choose_threads(again, 2, cache_dir=str(tmp_path), what="a step")
    assert again.calls > 0 and found.threads == torch.get_num_threads() == 1
    assert json.loads(file.read_text())[key]["threads"] == 1


def test_a_run_of_a_small_model_measures_and_leaves_its_weights_alone(
    command_line: CommandLine, tmp_path: Path
) -> None:
    save_gpt2(tmp_path / "gpt2")
    torch.set_num_threads(2)
    typed = ["model=blank_model", f"model.name_or_path={tmp_path / 'gpt2'}", "client_num_in_total=2", "comm_round=1",
             "max_length=64", "max_prompt_length=32", "n_train_examples=24", "n_test_examples=8"]  # fmt: skip
    result = command_line(*typed)
    assert result.code == 0, result.err
    assert " (a step in " in result.out and (tmp_path / "cache" / "threads.json").is_file()
    chosen = int(result.out.partition("cpu: ")[2].split()[0])
    again = command_line(*typed, f"num_threads={chosen}", "exp_name=again")
    assert f"cpu: {chosen} thread" in again.out and " (a step in " not in again.out
    one, other = ((found.run / "metrics.jsonl").read_bytes() for found in (result, again))
    assert one == other


@pytest.mark.parametrize(("given", "found"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
@pytest.mark.parametrize("program", ["main", "run.client_app", "run.server_app", "scripts.compare"])
def test_waiting_threads_sleep_unless_the_user_says_otherwise(program: str, given: dict[str, str], found: str) -> None:
    """The policy is set before torch is loaded, which reads it then."""
    code = f"{WATCH}\nimport {program}, torch"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**environment, **given},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.split()[0] == found
