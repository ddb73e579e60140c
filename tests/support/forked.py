"""Forked processes that run this project's programs without the seconds that starting and importing take."""

import functools
import gc
import inspect
import os
import runpy
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hydra.core.global_hydra import GlobalHydra
from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

from run import experiment
from support.launched import run_main

_SIGNATURE = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]


def fork(work: Callable[[], int]) -> int:
    """Call `work` in a forked process, which ends with the code it returns; return the id of the process."""
    if threading.current_thread() is threading.main_thread():
        _warm_up()
    with forking():
        pid = os.fork()
        if pid == 0:
            try:
                code = work()
                sys.stdout.flush()
                sys.stderr.flush()
            except BaseException:
                traceback.print_exc()
                code = 1
            os._exit(code)
    return pid


@contextmanager
def forking() -> Iterator[None]:
    """Make this process ready to be forked; its present objects stay frozen until the tests end."""
    if threading.current_thread() is threading.main_thread():
        _wait_for_loaders()
    with warnings.catch_warnings():
        # Python 3.12 warns of forking beside threads; these processes use no lock that a thread of ours may hold.
        warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
        gc.collect()
        gc.freeze()  # otherwise a garbage collection would copy all memory that the processes share
        yield


def _wait_for_loaders() -> None:
    """Wait for the threads in which transformers loads weights: it does not, and a fork would cut them off."""
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(10)


@functools.cache
def _warm_up() -> None:
    """Carry out a tiny run here, so that no forked process has to read the configuration and compile patterns anew."""
    threads = torch.get_num_threads()
    sizes = ["client_num_in_total=2", "comm_round=1", "n_train_examples=8", "n_test_examples=2", "num_threads=1"]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "pictures", without_pictures)
        assert run_main(patch, Path(folder), *sizes) == 0
    GlobalHydra.instance().clear()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def begin_quietly() -> None:
    """Silence transformers in this forked process, and draw no curves."""
    GlobalHydra.instance().clear()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    experiment.pictures = without_pictures


def without_pictures(folder: Path) -> Path:
    """Draw nothing, which takes longer than a small run."""
    return folder / "curves.png"


class Fork(subprocess.Popen[Any]):
    """`subprocess.Popen([sys.executable, "FILE.py", ...])`, forked; other programs are started as usual.

    Programs that it starts are forked too, but not those of installed packages, such as Ray's. No curves are drawn:
    drawing takes longer than these runs.
    """

    def _execute_child(self, *values: Any) -> None:
        given = _SIGNATURE.bind(self, *values).arguments
        command = [os.fspath(word) for word in given["args"]]
        if command[0] != sys.executable or not command[1].endswith(".py") or "site-packages" in command[1]:
            super()._execute_child(*values)  # type: ignore[misc]
            return
        pipes = [given[name] for name in ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")]
        self.pid = fork(lambda: _program(command[1:], given, {0: pipes[0], 1: pipes[3], 2: pipes[5]}))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]


def _program(command: list[str], given: dict[str, Any], files: dict[int, int]) -> int:
    """Make this forked process like one that has just started, run the program, and return its exit code."""
    if given["start_new_session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number, file in files.items():
        if file != -1:
            os.dup2(file, number)
    _close_pipes()
    sys.stdout, sys.stderr = (open(file, "w", buffering=1, closefd=False) for file in (1, 2))  # noqa: SIM115
    if given["env"] is not None:
        os.environ.clear()
        os.environ.update(given["env"])
    os.chdir(given["cwd"] or ".")
    subprocess.Popen = subprocess_handler.Popen = Fork  # type: ignore[misc, attr-defined]
    begin_quietly()
    sys.argv = command
    sys.path[0] = str(Path(command[0]).parent)
    try:
        runpy.run_path(command[0], run_name="__main__")
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
            return 1
        return int(leaving.code or 0)
    return 0


def _close_pipes() -> None:
    """Close the pipes of other processes: their readers wait until all that hold them open have ended."""
    for name in os.listdir("/proc/self/fd"):
        number = int(name)
        try:
            if number > 2 and stat.S_ISFIFO(os.fstat(number).st_mode):
                os.close(number)
        except OSError:  # the folder's own descriptor
            continue
