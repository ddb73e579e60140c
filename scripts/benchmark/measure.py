"""Seconds, operations and memory of single steps on this machine.

Shapes in comments: M, K, N of a matrix product (M, K) x (K, N), which takes 2 M K N operations.
"""

import gc
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fed.cpu.onednn import onednn_linear
from fed.cpu.runtime import return_freed_memory
from fed.data.examples import Example

PRODUCTS = ((1024, 1536, 1536), (2048, 2048, 2048))  # M, K, N
PEAK_SECONDS = 0.25  # that long each product is repeated
GIGA = 1e9
STATUS, CLEAR, SYSTEM = Path("/proc/self/status"), Path("/proc/self/clear_refs"), Path("/proc/meminfo")


def clock(threads: int) -> Callable[[], float]:
    """Return processor time for one thread, which other work on the machine does not distort, else wall time."""
    return time.process_time if threads == 1 else time.perf_counter


def matrix_peak(dtype: torch.dtype, now: Callable[[], float]) -> float:
    """Return the operations per second of the fastest of some large matrix products with the fastest library."""
    libraries: list[Callable[..., Tensor]] = [F.linear]
    if dtype == torch.float32 and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        libraries.append(onednn_linear)
    return max(_rate(linear, product, dtype, now) for linear in libraries for product in PRODUCTS)


@torch.no_grad()
def _rate(
    linear: Callable[..., Tensor], product: tuple[int, int, int], dtype: torch.dtype, now: Callable[[], float]
) -> float:
    m, k, n = product
    left_MK, right_NK = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)  # as linear layers keep them
    fastest, spent = float("inf"), 0.0
    while spent < PEAK_SECONDS:
        start = now()
        linear(left_MK, right_NK, None)
        seconds = now() - start
        fastest, spent = min(fastest, seconds), spent + seconds
    return 2 * m * k * n / fastest


class Work(NamedTuple):
    """The content of a batch, which is the same for all variants."""

    pairs: int
    tokens: int  # each prompt once, chosen, rejected
    responses: int  # tokens of chosen and rejected
    operations: float  # that a step needs at least, without attention scores


class Size(NamedTuple):
    """The numbers of weights of a model that take part in matrix products."""

    body: int  # without embeddings and head
    vocabulary: int
    hidden: int


def size_of(model: Any) -> Size:
    """Return the size of a transformers model."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    outside = embeddings | {id(p) for p in model.get_output_embeddings().parameters()}
    body = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    vocabulary, hidden = model.get_output_embeddings().weight.shape
    return Size(body, vocabulary, hidden)


def work(pairs: Sequence[Example], size: Size) -> Work:
    """Count 6 operations, forward and backward, per weight and useful token; for the head per response token only."""
    responses = sum(len(pair.chosen) + len(pair.rejected) for pair in pairs)
    tokens = responses + sum(len(pair.prompt) for pair in pairs)
    operations = 6.0 * size.body * tokens + 6.0 * size.vocabulary * size.hidden * responses
    return Work(len(pairs), tokens, responses, operations)


class Memory(NamedTuple):
    """The resident memory of the process, in bytes."""

    before: int
    peak: int

    @property
    def growth(self) -> int:
        """The bytes that the step added at its peak: gradients, activations and temporary copies."""
        return self.peak - self.before


def memory_of(step: Callable[[], object]) -> Memory:
    """Measure the memory of one call, after freed memory has gone back to the system."""
    gc.collect()
    return_freed_memory()
    exact = exact_memory()
    before = _status("VmRSS") if exact else _highest()
    step()
    return Memory(before, _status("VmHWM") if exact else _highest())


def exact_memory() -> bool:
    """Tell the kernel to forget the process's highest memory, and return False if it cannot."""
    try:
        CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _highest() -> int:
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def available_memory() -> float:
    """Return the bytes that the system can still give to processes; infinite if it does not say."""
    return _field(SYSTEM, "MemAvailable") if SYSTEM.exists() else math.inf


def _status(field: str) -> int:
    return _field(STATUS, field)


def _field(file: Path, name: str) -> int:
    (line,) = (line for line in file.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def bytes_of(tensors: Iterable[Tensor | None]) -> int:
    """Return the bytes of the tensors, each counted once."""
    sizes = {t.data_ptr(): t.numel() * t.element_size() for t in tensors if t is not None}
    return sum(sizes.values())
