"""Threads, kept memory and bfloat16 are read from the system and set."""

import ctypes
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fed.cpu import runtime
from fed.cpu.runtime import allowed_cpus, cpu_name, has_bfloat16, keep_freed_memory, peak_memory, set_up

GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")
VERSION_2, VERSION_1 = "0::/a/b\n", "5:memory:/other\n4:cpu,cpuacct:/a/b\n0::/\n"
OF_2, OF_1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"


@pytest.fixture(autouse=True)
def unchanged_process(monkeypatch):
    """Leave threads as they were, and an allocator that returns freed memory."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    yield
    monkeypatch.undo()
    torch.set_num_threads(threads)
    keep_freed_memory(False)


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("group", "files", "cpus"),
    [
        (VERSION_2, {f"{OF_2}/a/b/cpu.max": "300000 100000\n"}, 3),
        (VERSION_2, {f"{OF_2}/a/b/cpu.max": "350000 100000\n"}, 3),
        (VERSION_2, {f"{OF_2}/a/b/cpu.max": "50000 100000\n"}, 1),
        (VERSION_2, {f"{OF_2}/a/b/cpu.max": "max 100000\n"}, 64),
        (VERSION_2, {f"{OF_2}/a/b/cpu.max": "800000 100000", f"{OF_2}/a/cpu.max": "200000 100000"}, 2),
        ("0::/\n", {f"{OF_2}/cpu.max": "400000 100000\n"}, 4),
        (VERSION_2, {f"{OF_2}/elsewhere/cpu.max": "100000 100000\n"}, 64),
        (VERSION_1, {f"{OF_1}/a/b/cpu.cfs_quota_us": "500000\n", f"{OF_1}/a/b/cpu.cfs_period_us": "100000\n"}, 5),
        (VERSION_1, {f"{OF_1}/a/b/cpu.cfs_quota_us": "-1\n", f"{OF_1}/a/b/cpu.cfs_period_us": "100000\n"}, 64),
        # A container of version 1 sees its own group as the root, under the host's name for it.
        (VERSION_1, {f"{OF_1}/cpu.cfs_quota_us": "200000\n", f"{OF_1}/cpu.cfs_period_us": "100000\n"}, 2),
        ("", {}, 64),
    ],
)
def test_a_quota_of_cpu_time_is_whole_cpus_rounded_down_and_at_least_one(tmp_path, group, files, cpus):
    assert allowed_cpus(system(tmp_path, {"proc/self/cgroup": group, **files})) == cpus


def test_affinity_bounds_a_larger_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    files = {"proc/self/cgroup": "0::/\n", f"{OF_2}/cpu.max": "400000 100000\n"}
    assert allowed_cpus(system(tmp_path, files)) == 2


def test_a_system_without_affinity_or_groups_counts_its_cpus(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert allowed_cpus(tmp_path) == 7


@pytest.mark.parametrize(("asked", "chosen", "allowed", "used"), [(None, 4, 2, 2), (None, 2, 8, 2), (3, 4, 2, 3)])
def test_unasked_threads_are_torchs_choice_within_what_is_allowed(monkeypatch, asked, chosen, allowed, used):
    torch.set_num_threads(chosen)
    monkeypatch.setattr(runtime, "allowed_cpus", lambda: allowed)
    assert set_up(asked, keep_freed=False) == "freed memory returned"
    assert torch.get_num_threads() == used


def page_faults(mebibytes: int) -> int:
    """Count the pages that the kernel hands out while a buffer is taken, written and freed."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(mebibytes * runtime.MIB, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not GLIBC, reason="glibc only")
def test_kept_memory_is_written_again_without_the_kernel():
    assert keep_freed_memory(True)
    page_faults(128)
    assert page_faults(64) < 160  # of 16384 pages


@pytest.mark.skipif(not GLIBC, reason="glibc only")
def test_kept_memory_leaves_the_process_when_it_shall_be_returned():
    keep_freed_memory(True)
    before = resident()
    page_faults(256)
    assert resident() - before > 200 * runtime.MIB
    assert keep_freed_memory(False)
    assert resident() - before < 56 * runtime.MIB


@pytest.mark.parametrize(("platform", "libc"), [("darwin", None), ("linux", SimpleNamespace())])
def test_without_glibc_nothing_is_done_and_said_so(monkeypatch, platform, libc):
    monkeypatch.setattr(runtime.sys, "platform", platform)
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: libc)
    assert not keep_freed_memory(True)
    assert set_up(1, keep_freed=True) == "freed memory returned (no glibc)"


@pytest.mark.parametrize("refused", [None, runtime.M_MMAP_MAX, runtime.M_TRIM_THRESHOLD])
def test_memory_is_kept_when_glibc_takes_both_settings(monkeypatch, refused):
    """The numbers are those of malloc.h: nothing by mmap (-4), the heap's end never given back (-1)."""
    settings = {}
    libc = SimpleNamespace(gnu_get_libc_version=None)
    libc.mallopt = lambda name, value: settings.update({name: value}) or int(name != refused)
    monkeypatch.setattr(runtime.sys, "platform", "linux")
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda name: libc)
    assert keep_freed_memory(True) == (refused is None)
    assert settings == {-4: 0, -1: -1}


@pytest.mark.parametrize(
    ("cpuinfo", "capabilities", "found"),
    [
        ("flags\t\t: fpu avx2 avx512f", {"avx2": True}, False),
        ("flags\t\t: fpu avx512f avx512_bf16", {}, True),
        ("flags\t\t: fpu amx_bf16 amx_tile", {}, True),
        ("Features\t: fp asimd bf16", {}, True),
        ("Features\t: fp asimd svebf16x", {}, False),
        ("", {"avx512_bf16": True}, True),
        ("", {"avx512_bf16": False, "bf16": False}, False),
    ],
)
def test_bfloat16_is_in_hardware_where_kernel_or_torch_lists_it(tmp_path, monkeypatch, cpuinfo, capabilities, found):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bfloat16(system(tmp_path, {"proc/cpuinfo": f"processor\t: 0\n{cpuinfo}\n"})) == found


def test_an_older_torch_without_the_list_leaves_it_to_the_kernel(tmp_path, monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bfloat16(system(tmp_path, {"proc/cpuinfo": "flags : avx512_bf16\n"}))
    assert not has_bfloat16(tmp_path / "nowhere")


def test_the_first_cpu_of_the_list_gives_the_name(tmp_path):
    assert cpu_name(system(tmp_path, {"proc/cpuinfo": "model name\t: One: a\n\nmodel name\t: Two\n"})) == "One: a"


def test_the_peak_memory_of_a_process_does_not_count_what_its_parent_had():
    """Linux's ru_maxrss does: a child begins with its parent's."""
    held = bytearray(os.urandom(1 << 20)) * 700
    script = "from fed.cpu.runtime import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert 50e6 < int(child.stdout) < len(held) < peak_memory()
