"""The processes of a run: started all at once, and joined by each of them. Imports torch late, which is slow."""

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

STORE = "FEDPO_STORE"  # the file through which the processes of one machine find each other
MISTAKE = 2  # exit code for a mistake of the user's, told in one line
TOLD = 3  # exit code of the first process where it has told why the run cannot go on
FIRST_SPEAKS = 20.0  # seconds that the others leave the first process to say what is wrong; its end ends them
PR_SET_PDEATHSIG = 1  # Linux's prctl.h


def is_rank() -> bool:
    """Whether this process was started as one of several, by `launch` or by torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_started_here() -> bool:
    """Whether this process was started by `launch`, which takes the signals meant for all."""
    return is_rank() and STORE in os.environ


def is_first() -> bool:
    """Whether this process speaks for all: the only one, or that of rank 0."""
    return os.environ.get("RANK", "0") == "0"


def local_ranks() -> int:
    """Processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", "1"))) if is_rank() else 1


def launch(processes: int, command: Sequence[str]) -> int:
    """Run the command once per rank, on this machine, until all are done or one fails; the exit code.

    The first failure ends all of them, and its reason is printed last. No port is opened: they meet at a file.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from fed.distributed import stop

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # what it says is said below
    raise_open_files()
    with tempfile.TemporaryDirectory(prefix="fedpo-ranks-") as folder:
        os.environ[STORE] = str(Path(folder, "store"))
        os.environ[stop.ORDER] = str(Path(folder, "stop"))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")  # seconds that a process told to end has
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id="fedpo",
            rdzv_backend="c10d",
            rdzv_endpoint=str(Path(folder, "rendezvous")),
            rdzv_configs={"store_type": "file"},
            max_restarts=0,
            monitor_interval=0.1,
            signals_to_handle="SIGHUP,SIGQUIT",  # the others end the run after its present step
        )
        try:
            with stop.listening(lambda number: Path(folder, "stop").write_text(str(number))):
                elastic_launch(config, sys.executable)(*command)
        except ChildFailedError as error:
            return _told(error.failures, processes)
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
        finally:
            number = stop.requested()
            del os.environ[STORE], os.environ[stop.ORDER]
    return 128 + number if number else 0


def _told(failures: dict[int, Any], processes: int) -> int:
    """Print why the run failed; the exit code."""
    reasons = {rank: _reason(failure) for rank, failure in failures.items()}
    # One that dies takes the others' connections with it: what they say of that is not the reason.
    rank = min(failures, key=lambda rank: (_is_lost(reasons[rank]), failures[rank].exitcode == -signal.SIGTERM, rank))
    failure, reason = failures[rank], reasons[rank]
    if failure.exitcode in (MISTAKE, TOLD):  # rank 0 has said it
        return MISTAKE if failure.exitcode == MISTAKE else 1
    if any("Timed out" in other for other in reasons.values()):
        reason = "it did not answer within process_timeout" if not _is_lost(reason) else f"it waited in vain: {reason}"
    elif failure.exitcode == -signal.SIGKILL:
        reason += "; the system does that when memory runs out"
    print(f"error: the run ended with process {rank} of {processes}: {reason}", file=sys.stderr)
    return 1


def _reason(failure: Any) -> str:
    """What a process said of its failure, in one line."""
    message = failure.message
    if isinstance(message, dict):
        message = message.get("message", message)
    return " ".join(str(message).split())[:1000]


def _is_lost(reason: str) -> bool:
    """Whether an error says no more than that another process is gone or silent."""
    return any(sign in reason for sign in ("gloo/transport", "onnection closed by peer", "NCCL", "Timed out"))


@contextmanager
def joined(device: str | None, timeout: float) -> Iterator[Any]:
    """Join the other processes of the run, if there are any; the device of this one, as `torch.device`.

    Args:
        device: "cpu", "cuda", ...; None: a GPU of its own if there is one.
        timeout: Seconds after which a process that does not answer is given up, which ends the run.

    Raises:
        ValueError: If the device cannot be used.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if is_rank() and name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    try:
        found = torch.device(name)
        torch.zeros((), device=found).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name} cannot be used: {reason}; leave it out or use device=cpu") from error
    if not is_rank():
        yield found
        return
    _die_with_parent()
    raise_open_files()
    backend = "gloo"
    if found.type == "cuda":
        torch.cuda.set_device(found)
        backend = "cpu:gloo,cuda:nccl"
    meeting: dict[str, Any] = {}  # torchrun's is in the environment
    if STORE in os.environ:
        meeting["rank"], meeting["world_size"] = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        meeting["store"] = dist.FileStore(os.environ[STORE], meeting["world_size"])  # type: ignore[attr-defined]
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout), **meeting)
    handler = get_error_handler()  # hands the reason of a failure to whoever started this process
    handler.initialize()
    try:
        yield found
    except Exception as error:
        handler.record_exception(error)
        if _is_lost(str(error)):  # where it was waiting says nothing
            print(f"process {os.environ['RANK']} lost the others: {str(error).splitlines()[0]}", file=sys.stderr)
            sys.exit(1)
        raise
    dist.destroy_process_group()


def raise_open_files() -> None:
    """As many open files as the system allows: tensors that processes share are files."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _die_with_parent() -> None:
    """On Linux, be killed when the process that started this one is gone, however it went."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
