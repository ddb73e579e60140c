"""Each of several processes tells, or leaves to the first, why a run cannot go on."""

import os
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from fed.distributed import launch
from support.launched import SMALL, run_main

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
    assert "process 0 lost its connection to the others" in err and "Timed out" in err


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
