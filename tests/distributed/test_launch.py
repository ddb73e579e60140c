"""Runs of several processes from the command line: their results and their ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file

import main
from fed.distributed import launch
from run import experiment

ROOT = Path(main.__file__).parent
SMALL = [
    *["client_num_in_total=2", "comm_round=1", "local_steps=2", "n_train_examples=40", "n_test_examples=8"],
    *["device=cpu", "optimizer=SGD", "lr=0.02", "cpu_matmul=mkl", "tensorboard.enabled=false", "output_dir=runs"],
]
SOON = 20  # seconds after a failure: processes are given 5 to end, and machines that run tests are slow
MARK = "FEDPO_TEST"  # in the environment of every process of a run


@dataclass(frozen=True)
class Ended:
    """The end of a run: exit code, output and processes left over."""

    folder: Path
    code: int
    out: str
    err: str
    left: list[int]  # its processes that still live

    @property
    def run(self) -> Path:
        assert self.code == 0, self.err
        (run,) = self.folder.glob("runs/*/*")
        return run

    def lines(self) -> list[dict[str, object]]:
        lines = (self.run / "metrics.jsonl").read_text().splitlines()
        return sorted(map(json.loads, lines), key=lambda line: (line["who"], line["split"], line["round"]))


def start(folder: Path, program: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the program in a folder of its own; it prints to files, which no process left over can hold open."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, MARK: str(folder), "PYTHONPATH": str(ROOT)}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, program, *arguments], cwd=folder, env=environment, stdout=out, stderr=err
        )


def end(process: subprocess.Popen[bytes], folder: Path) -> Ended:
    """Wait for the program, list the processes it left and kill them."""
    try:
        code = process.wait(timeout=150)
        left = living(folder)
    finally:
        for pid in living(folder):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    return Ended(folder, code, (folder / "out").read_text(), (folder / "err").read_text(), left)


def living(folder: Path) -> list[int]:
    """List the processes of the run in that folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={folder}\0".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:  # another user's, or just gone
            continue
    return found


# The whole command


@pytest.fixture
def one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Iterator[Callable[..., Ended]]:
    """Run `python main.py ...` in this process."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(experiment, "curves", lambda folder: folder / "curves.png")

    def call(*arguments: str) -> Ended:
        folder = tmp_path / f"one-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        code = run_main(monkeypatch, folder, *arguments)
        return Ended(folder, code, *capsys.readouterr(), [])

    yield call
    GlobalHydra.instance().clear()
    torch.set_num_threads(threads)


def run_main(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["main.py", *arguments])
    GlobalHydra.instance().clear()
    try:
        return main.main()
    except SystemExit as leaving:
        return int(leaving.code or 0)


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
        ["curves.png", *(name for name in names[1] if not by_process.search(name))]
    )
    ours, theirs = (load_file(run / "policy" / "model.safetensors") for run in (found.run, expected.run))
    assert all((ours[name] - tensor).abs().max() <= 1e-5 * tensor.abs().max() for name, tensor in theirs.items())
    assert len(json.loads((found.run / "summary.json").read_text())["processes"]) == 2


def test_two_processes_that_are_asked_to_stop_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    typed = [*SMALL, "comm_round=2", "trainer=FSDPTrainer", "trainer_processes=2"]
    folder = tmp_path / "stopped"
    process = start(folder, ROOT / "main.py", *typed)
    while not list(folder.glob("runs/*/*/checkpoints/round-1")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    stopped = end(process, folder)
    assert (stopped.code, stopped.left) == (143, []), stopped.err
    assert "stopped by SIGTERM; what was done is kept, go on with: python main.py resume=" in stopped.err
    resumed = end(start(folder, ROOT / "main.py", "resume=latest", "output_dir=runs"), folder)
    whole = end(start(tmp_path / "whole", ROOT / "main.py", *typed), tmp_path / "whole")
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
    found = end(start(folder, ROOT / "main.py", *SMALL, *typed), folder)
    assert (found.code, found.out, found.left) == (2, "", [])
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
    process = start(folder, folder / "program.py", how)
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


# What each process does, forked: `main` without the seconds that imports take


def main_in_ranks(folder: Path, count: int, *arguments: str, wait_for: int) -> list[tuple[int | None, str]]:
    """Return exit code and stderr of each process; None: it still ran when the first `wait_for` had ended."""
    if torch.cuda.is_available():
        pytest.skip("a forked process cannot train once a GPU is in use; set CUDA_VISIBLE_DEVICES= to run this")
    store = folder.parent / "store"
    context = mp.get_context("fork")
    processes = [context.Process(target=_rank, args=(folder, store, r, count, arguments)) for r in range(count)]
    try:
        for process in processes:
            process.start()
        for process in processes[:wait_for]:
            process.join(60)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [(code, (folder.parent / f"err-{rank}").read_text()) for rank, code in enumerate(codes)]


def _rank(folder: Path, store: Path, rank: int, count: int, arguments: tuple[str, ...]) -> None:
    os.environ.update(
        {"RANK": f"{rank}", "WORLD_SIZE": f"{count}", "LOCAL_RANK": f"{rank}", "LOCAL_WORLD_SIZE": f"{count}"}
        | {launch.STORE: str(store), "GLOO_SOCKET_IFNAME": "lo"}
    )
    with (
        (folder.parent / f"out-{rank}").open("w") as sys.stdout,
        (folder.parent / f"err-{rank}").open("w") as sys.stderr,
    ):
        sys.exit(run_main(pytest.MonkeyPatch(), folder, *arguments))


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("trainer=FSDPTrainer batch_size=2 gradient_accumulation_steps=2", "batch_size=2 leaves 1 pairs for 2"),
        ("trainer=FSDPTrainer model.archive=nowhere.pt", "nowhere.pt does not exist"),
        ("trainer=FSDPTrainer max_length=2000 model.name_or_path=./nowhere", "./nowhere does not exist"),
        ("trainer=BasicTrainer", "2 processes trainer=BasicTrainer clients_in_parallel=2"),
    ],
)
def test_the_first_of_several_processes_tells_a_mistake_before_the_others_and_all_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, words: str
) -> None:
    monkeypatch.setattr(launch, "FIRST_SPEAKS", 0.5)  # the others find nobody here to end them
    folder = tmp_path / "run"
    folder.mkdir()
    (code, err), *others = main_in_ranks(folder, 2, *SMALL, *typed.split(), wait_for=2)
    assert (code, others) == (2, [(2, err)])
    assert err.startswith("error: ") and err.count("\n") == 1 and all(word in err for word in words.split()), err
    assert list(folder.iterdir()) == []


SLEEPING = """
import os
import time


def loss(policy, reference, *, beta: float):
    if os.environ["RANK"] == "1" and policy.chosen.requires_grad:
        time.sleep(600)
    return -(policy.chosen - policy.rejected)
"""


def test_a_process_that_waits_longer_than_process_timeout_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sleeping.py").write_text(SLEEPING)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "run").mkdir()
    typed = ["trainer=FSDPTrainer", "loss._target_=sleeping.loss", "process_timeout=5"]
    (code, err), (other, _) = main_in_ranks(tmp_path / "run", 2, *SMALL, *typed, wait_for=1)
    assert (code, other) == (1, None), err
    assert "process 0 lost the others" in err and "Timed out" in err


# What is refused before any process is started


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("trainer=FSDPTrainer clients_in_parallel=3 trainer_processes=4 client_num_in_total=4", "3 divide 4"),
        ("trainer_processes=2", "2 trainer=BasicTrainer clients_in_parallel=2"),
        ("clients_in_parallel=2 trainer_processes=4", "4 trainer=BasicTrainer"),
        ("process_timeout=10", "process_timeout one process leave"),
        ("trainer=FSDPTrainer cpu_offload=true", "cpu_offload one process leave"),
        ("cpu_offload=true", "cpu_offload FSDPTrainer leave"),
        ("clients_in_parallel=3", "clients_in_parallel=3 2 clients of a round"),
        (
            "clients_in_parallel=3 clients_per_round=2 client_num_in_total=4",
            "clients_in_parallel=3 2 clients of a round",
        ),
        ("clients_in_parallel=2 mode=local", "clients_in_parallel mode="),
        ("trainer=FSDPTrainer trainer_processes=0", "trainer_processes=0 at least 1"),
    ],
)
def test_numbers_of_processes_that_do_not_go_together_are_refused(one_process, typed: str, words: str) -> None:
    found = one_process(*SMALL, *typed.split())
    assert found.code == 2
    assert found.err.startswith("error: ") and found.err.count("\n") == 1, found.err
    assert all(word in found.err for word in words.split()), found.err
    assert list(found.folder.iterdir()) == []
