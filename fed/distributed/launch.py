"""Starts the processes of a run all at once, and lets each join the others. Torch is imported late: it is slow."""

import ctypes
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

STORE = "FEDPO_STORE"  # names the file through which the processes of one machine find each other
MISTAKE = 2  # exit code after a mistake of the user's, printed in one line
REPORTED = 3  # exit code of the first process after it has printed why the run cannot continue
FIRST_SPEAKS = 20.0  # seconds that the others wait for the first process to say what is wrong; its end ends them
PR_SET_PDEATHSIG = 1  # Linux's prctl.h


def is_rank() -> bool:
    """Return True if this process was started as one of several, by `launch` or by torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_started_here() -> bool:
    """Return True if this process was started by `launch`, which takes the signals meant for all."""
    return is_rank() and STORE in os.environ


def is_first() -> bool:
    """Return True if this process speaks for all: the only one, or that of rank 0."""
    return os.environ.get("RANK", "0") == "0"


def local_ranks() -> int:
    """Count the processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))) if is_rank() else 1


def launch(processes: int, command: Sequence[str]) -> int:
    """Run the command once per rank on this machine until all are done or one fails; return the exit code.

    The first failure ends all of them, and its reason is printed last. No port is opened: they meet at a file.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    from fed.distributed import stop

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # `_report_failure` prints what matters
    raise_open_files()
    with tempfile.TemporaryDirectory(prefix="fedpo-ranks-") as folder:
        os.environ[STORE] = str(Path(folder, "store"))
        os.environ[stop.ORDER] = str(Path(folder, "stop"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")  # seconds that a process told to end has
        try:
            with stop.listening(lambda number: Path(folder, "stop").write_text(str(number))):
                elastic_launch(_launch_config(processes, folder), sys.executable)(*command)
        except ChildFailedError as error:
            return _report_failure(error.failures, processes)
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
        finally:
            number = stop.requested()
            del os.environ[STORE], os.environ[stop.ORDER]
    return 128 + number if number else 0


def _launch_config(processes: int, folder: str) -> Any:
    from torch.distributed.launcher.api import LaunchConfig

    return LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="fedpo",
        rdzv_backend="c10d",
        rdzv_endpoint=str(Path(folder, "rendezvous")),
        rdzv_configs={"store_type": "file"},
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle="SIGQUIT",  # SIGINT, SIGTERM and SIGHUP end the run after its present step
    )


def _report_failure(failures: dict[int, Any], processes: int) -> int:
    """Print why the run failed; return the exit code."""
    reasons = {rank: _reason(failure) for rank, failure in failures.items()}
    # A process that dies breaks the others' connections: what they say of that is not the reason.
    rank = min(failures, key=lambda rank: (_is_lost(reasons[rank]), failures[rank].exitcode == -signal.SIGTERM, rank))
    failure, reason = failures[rank], reasons[rank]
    if failure.exitcode in (MISTAKE, REPORTED):  # rank 0 has printed it
        return MISTAKE if failure.exitcode == MISTAKE else 1
    if any("Timed out" in other for other in reasons.values()):
        reason = (
            "it did not answer within process_timeout"
            if not _is_lost(reason)
            else f"it waited for another process too long: {reason}"
        )
    elif failure.exitcode == -signal.SIGKILL:
        reason += "; the system does that when memory runs out"
    print(f"error: the run ended with process {rank} of {processes}: {reason}", file=sys.stderr)
    return 1


def _reason(failure: Any) -> str:
    """Return in one line what a process said of its failure."""
    message = failure.message
    if isinstance(message, dict):
        message = message.get("message", message)
    return " ".join(str(message).split())[:1000]


def _is_lost(reason: str) -> bool:
    """Return True if an error says only that another process is gone or silent."""
    return any(sign in reason for sign in ("gloo/transport", "onnection closed by peer", "NCCL", "Timed out"))


@contextmanager
def joined(device: str | None, timeout: float) -> Iterator[Any]:
    """Join the other processes of the run, if there are any, and yield the `torch.device` of this one.

    Args:
        device: "cpu", "cuda", ...; None: a GPU of its own if there is one.
        timeout: Seconds after which a process that does not answer is given up, which ends the run.

    Raises:
        ValueError: If the device cannot be used.
    """
    found = _usable(device)
    if not is_rank():
        yield found
        return
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    _die_with_parent()
    raise_open_files()
    _meet(found, timeout)
    handler = get_error_handler()  # hands the reason of a failure to the process that started this one
    handler.initialize()
    try:
        yield found
    except Exception as error:
        handler.record_exception(error)
        if _is_lost(str(error)):  # the place at which it was waiting says nothing
            print(
                f"process {os.environ['RANK']} lost its connection to the others: {str(error).splitlines()[0]}",
                file=sys.stderr,
            )
            sys.exit(1)
        raise
    dist.destroy_process_group()


def _usable(device: str | None) -> Any:
    """Return the device of this process as `torch.device`, after one computation on it."""
    import torch

    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if is_rank() and name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        found = torch.device(name)
        torch.zeros((), device=found).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name} cannot be used: {reason}; leave it out or use device=cpu") from error
    return found


def _meet(device: Any, timeout: float) -> None:
    """Wait for the other processes, at the file of `launch` or where torchrun's environment says."""
    import torch
    import torch.distributed as dist

    backend = "gloo"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    meeting: dict[str, Any] = {}
    if STORE in os.environ:
        meeting["rank"], meeting["world_size"] = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        meeting["store"] = dist.FileStore(os.environ[STORE], meeting["world_size"])  # type: ignore[attr-defined]
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **meeting)


def raise_open_files() -> None:
    """Allow as many open files as the system permits: tensors that processes share are files."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _die_with_parent() -> None:
    """Ask Linux to kill this process as soon as its parent is gone, for whatever reason."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
