"""Runs of several processes from the command line: their results and their ends."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from fed.cpu.matmul import SMALL as SMALLER
from fed.model.demo import demo_tokenizer
from support.forked import Fork
from support.launched import ROOT, SMALL, SOON, end, living, start

# Whole runs


def test_two_processes_run_what_one_runs_and_leave_the_same_files(tmp_path: Path, one_process) -> None:
    folder = tmp_path / "two"
    found = end(start(folder, ROOT / "main.py", *SMALL, "trainer=FSDPTrainer", "trainer_processes=2"), folder)
    expected = one_process(*SMALL)
    assert (found.err, found.left) == ("", [])
    assert "2 processes: each model split over 2" in found.out
    assert found.out.count("round 1/1") == 1
    for line, wanted in zip(found.lines(), expected.lines(), strict=True):
        assert {**line, **numbers(wanted)} == wanted  # the same names and words
        assert line.get("loss", 0) == pytest.approx(wanted.get("loss", 0), rel=2e-6)
        if line["split"] == "train":  # at the first step all pairs tie but for rounding
            line["accuracy"] = wanted["accuracy"]
        assert numbers(line) == pytest.approx(numbers(wanted), rel=1e-4, abs=1e-4)
    names = [sorted(str(path.relative_to(run)) for path in run.rglob("*")) for run in (found.run, expected.run)]
    by_process = re.compile("shard-|process-")
    assert [name for name in names[0] if not by_process.search(name)] == sorted(
        ["curves.png", "partition.png", *(name for name in names[1] if not by_process.search(name))]
    )
    ours, theirs = (load_file(run / "policy" / "model.safetensors") for run in (found.run, expected.run))
    assert all((ours[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max() for name, tensor in theirs.items())
    assert len(json.loads((found.run / "summary.json").read_text())["processes"]) == 2


@pytest.mark.parametrize(
    "how", ["trainer=FSDPTrainer trainer_processes=2", "trainer=TensorParallelTrainer trainer_processes=2",
            "clients_in_parallel=2"]
)  # fmt: skip
def test_layers_that_are_large_enough_to_be_measured_run_split_in_every_way(
    tmp_path: Path, large: Path, how: str
) -> None:
    typed = [*(word for word in SMALL if word != "cpu_matmul=mkl"), "model=blank_model", "max_length=64"]
    typed += [f"model.name_or_path={large}", "max_prompt_length=32", "batch_size=2", "gradient_accumulation_steps=1"]
    found = end(start(tmp_path / "run", ROOT / "main.py", *typed, *how.split(), popen=Fork), tmp_path / "run")
    assert (found.code, found.err, found.left) == (0, "", [])
    # Layers that processes share are always MKL's.
    assert ("GFLOP/s a core" in found.out) == ("TensorParallel" not in how)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a Llama whose layers are above `matmul.SMALL`."""
    folder, end = tmp_path_factory.mktemp("large"), demo_tokenizer().eos_token_id
    sizes = {"vocab_size": 257, "hidden_size": 384, "intermediate_size": 384, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=64, eos_token_id=end, bos_token_id=end)
    assert sizes["hidden_size"] ** 2 > SMALLER
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    demo_tokenizer().save_pretrained(folder)
    return folder


def test_two_processes_that_are_asked_to_stop_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    typed = [*SMALL, "comm_round=2", "trainer=FSDPTrainer", "trainer_processes=2"]
    folder = tmp_path / "stopped"
    process = start(folder, ROOT / "main.py", *typed, popen=Fork)
    while not list(folder.glob("runs/*/*/checkpoints/round-1")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stopped = end(process, folder)
    assert stopped.code == 143, stopped.err
    assert "stopped by SIGTERM; progress is saved; resume with: python main.py resume=" in stopped.err
    resumed = end(start(folder, ROOT / "main.py", "resume=latest", "output_dir=runs", popen=Fork), folder)
    whole = end(start(tmp_path / "whole", ROOT / "main.py", *typed, popen=Fork), tmp_path / "whole")
    assert "resuming after round" in resumed.out and resumed.lines() == whole.lines()
    ours, theirs = (load_file(run / "policy" / "model.safetensors") for run in (resumed.run, whole.run))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def numbers(line: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in line.items() if not isinstance(value, str)}


IDEAS = """
import os
import time

if os.environ.get("RANK") == "0":
    time.sleep(2)  # the first process finds the mistake long after the other


def scalar(policy, reference, *, beta: float):
    return policy.chosen.mean()
"""


def test_a_mistake_that_all_processes_find_is_told_once_and_nothing_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "my_ideas.py").write_text(IDEAS)
    typed = ["trainer=FSDPTrainer", "trainer_processes=2", "loss._target_=my_ideas.scalar"]
    found = end(start(folder, ROOT / "main.py", *SMALL, *typed, popen=Fork), folder)
    assert (found.code, found.out) == (2, "starting 2 processes ...\n")
    assert found.err.startswith("error: loss: scalar gives a tensor of shape ()") and found.err.count("\n") == 1
    assert {path.name for path in folder.iterdir()} <= {"my_ideas.py", "__pycache__", "out", "err"}


# How runs end, by a program that is quicker to start


PROGRAM = """
import os
import signal
import sys
import time
from pathlib import Path

from fed.distributed import launch


def work(rank: int, how: str) -> None:
    import torch.distributed as dist

    dist.barrier()
    Path(f"rank-{rank}").touch()
    if rank == 1:
        if how == "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "raises":
            raise ZeroDivisionError("a bug of the user's")
        time.sleep(600)
    dist.barrier()


if not launch.is_rank():
    sys.exit(launch.launch(2, sys.argv))
with launch.joined("cpu", 5.0 if sys.argv[1] == "hangs" else 600.0) as device:
    work(int(os.environ["RANK"]), sys.argv[1])
"""


def started(folder: Path, how: str) -> subprocess.Popen[bytes]:
    """Start the program above and wait until both of its processes are at work."""
    folder.mkdir()
    (folder / "program.py").write_text(PROGRAM)
    process = start(folder, folder / "program.py", how, popen=Fork)
    deadline = time.monotonic() + 60
    while not all((folder / f"rank-{rank}").exists() for rank in (0, 1)):
        assert time.monotonic() < deadline and process.poll() is None, (folder / "err").read_text()
        time.sleep(0.02)
    return process


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raises", "error: the run ended with process 1 of 2: ZeroDivisionError: a bug of the user's"),
        ("is killed", "error: the run ended with process 1 of 2: Signal 9 (SIGKILL) memory"),
        ("hangs", "error: the run ended with process 1 of 2: it did not answer within process_timeout"),
    ],
)
def test_a_run_ends_soon_after_its_first_failure_tells_it_last_and_leaves_no_process(
    tmp_path: Path, how: str, words: str
) -> None:
    process, began = started(tmp_path / "run", how), time.monotonic()
    found = end(process, tmp_path / "run")
    assert time.monotonic() - began < SOON
    assert (found.code, found.left) == (1, []), found.err
    last = found.err.splitlines()[-1]
    assert all(word in last for word in words.split()), found.err


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
def test_processes_die_with_the_one_that_started_them(tmp_path: Path) -> None:
    process = started(tmp_path / "run", "waits")
    process.kill()
    deadline = time.monotonic() + SOON
    while living(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert end(process, tmp_path / "run").left == []
