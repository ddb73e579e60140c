"""The CPU as this process finds it: allowed threads, kept memory, bfloat16, name and peak memory."""

import ctypes
import os
import platform
import resource
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
NEVER = -1
MIB = 1 << 20
KEPT_WITH_TEMPORARY_WEIGHTS = 4 * MIB


def set_up(num_threads: int | None, *, keep_freed: bool, processes: int = 1, temporary_weights: bool = False) -> str:
    """Set threads and allocator, before the model is allocated, and describe the allocator in words.

    Args:
        num_threads: Threads of this process; None: torch's choice, but no more than the process may use.
        keep_freed: Keep freed memory in the process.
        processes: Processes of this run on this machine; they share its CPUs.
        temporary_weights: Whole weights are allocated for each use and freed. Large blocks are then returned: kept,
            they would soon lie in pieces.
    """
    torch.set_num_threads(num_threads or min(torch.get_num_threads(), max(1, allowed_cpus() // processes)))
    done = keep_freed_memory(keep_freed, up_to=KEPT_WITH_TEMPORARY_WEIGHTS if temporary_weights else None)
    memory = "kept" if keep_freed and done else "returned" + (" (no glibc)" if keep_freed else "")
    if temporary_weights and keep_freed and done:
        memory += f" up to {KEPT_WITH_TEMPORARY_WEIGHTS // MIB} MiB a block"
    return f"freed memory {memory}"


def keep_freed_memory(keep: bool, *, up_to: int | None = None) -> bool:
    """Keep freed memory in the process, or return it as glibc usually does; return True if that took effect.

    The kernel zeroes every page that comes back to it, and a training step frees and asks for the same large blocks
    again and again. `keep=False` sets the values that glibc's moving thresholds end at, and returns what is free now.

    Args:
        keep: True: keep it; False: return it.
        up_to: Blocks of more bytes are returned all the same; None: blocks of any size are kept.
    """
    libc = _glibc()
    if libc is None:
        return False
    if keep:
        large = {M_MMAP_MAX: 0} if up_to is None else {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: up_to}
        values = {**large, M_TRIM_THRESHOLD: NEVER}
    else:
        values = {M_MMAP_MAX: 65536, M_MMAP_THRESHOLD: 32 * MIB, M_TRIM_THRESHOLD: 64 * MIB}
    took = [libc.mallopt(name, value) == 1 for name, value in values.items()]
    if not keep:
        return_freed_memory()
    return all(took)


def return_freed_memory() -> None:
    """Return memory that is free now to the system, where the C library is glibc."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None


def allowed_cpus(root: Path = Path("/")) -> int:
    """Count the CPUs that affinity and the quotas of control groups leave to this process; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([affinity, *_quotas(root)])))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPUs that each enclosing control group allows, by `cpu.max` (version 2) or `cpu.cfs_quota_us` (1)."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / controllers
        inside = Path(group.lstrip("/"))
        for folder in (mounted / inside, *(mounted / parent for parent in inside.parents)):
            if controllers:
                quota = [_text(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            else:
                quota = _text(folder / "cpu.max").split()
            if len(quota) == 2 and all(part.isdigit() for part in quota):  # "max" and -1: no limit
                yield int(quota[0]) / int(quota[1])


def has_bfloat16(root: Path = Path("/")) -> bool:
    """Return True if this CPU multiplies bfloat16 in hardware; others emulate it, slower than float32."""
    # Newer torch tells; elsewhere the kernel's list does.
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    listed = _cpuinfo(root, "flags") or _cpuinfo(root, "Features")
    return any(known.get(name) or name in listed.split() for name in ("avx512_bf16", "amx_bf16", "bf16"))


def cpu_name(root: Path = Path("/")) -> str:
    """Return the model of this CPU, as far as the system tells it."""
    return _cpuinfo(root, "model name") or platform.processor() or platform.machine()


def peak_memory() -> int:
    """Return the most memory that this process has had, in bytes."""
    for line in _text(Path("/proc/self/status")).splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    # Not on Linux, where this number is at least that of the parent process when it started this one.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _cpuinfo(root: Path, field: str) -> str:
    """Return a field of the first CPU in Linux's list, or ""."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def _text(path: Path) -> str:
    """Read a file of the system; return "" if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
