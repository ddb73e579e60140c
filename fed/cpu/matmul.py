"""The library that multiplies the float32 matrices of a model's linear layers on a CPU: MKL, torch's own, or oneDNN.

Shapes: R rows, K inputs, N outputs.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fed.cpu.choices import check_measured, measured_once
from fed.cpu.onednn import as_NK, linear_layers, onednn_linear, use_onednn
from fed.cpu.runtime import cpu_name

NAMES = {"mkl": "MKL", "onednn": "oneDNN"}
ROWS = 512
MOST_FLOP = 4e9  # operations of one measured forward and backward pass: 40 ms on a fast core
SMALL = 1 << 17  # weights of a layer; with fewer, Python takes longer than the matrices
CLEARLY = 1.2  # oneDNN is taken if it is faster by more than this factor


@dataclass(frozen=True)
class Choice:
    """The library in use, and the measured speeds of both in 1e9 operations per second and core."""

    library: str | None  # None: this torch has neither
    speeds: dict[str, float]  # empty: not measured

    def __post_init__(self) -> None:
        if self.library not in (None, *NAMES):
            raise ValueError(f"library is {self.library!r}; expected {' or '.join(NAMES)}")
        check_measured(self.speeds, NAMES)

    def __str__(self) -> str:
        text = f"float32 matrices by {NAMES[self.library] if self.library else 'what torch was built with'}"
        if not self.library or not self.speeds:
            return text
        other = next(name for name in NAMES if name != self.library)
        return f"{text} ({self.speeds[self.library]:.0f} GFLOP/s a core; {NAMES[other]} {self.speeds[other]:.0f})"


def choose_library(model: Any, wanted: str, *, cache_dir: str, deterministic: bool = False) -> Choice:
    """Choose the library that the model's linear layers use from now on.

    Args:
        model: A model with float32 weights on the CPU.
        wanted: "mkl", "onednn", or "auto": oneDNN where it is clearly faster on the layers that take the most time.
        cache_dir: Keeps measured choices: libraries differ in the last bits, so later runs must choose alike.
        deterministic: Make "auto" measure nothing and take MKL.

    Raises:
        ValueError: If this torch lacks the library, or the cache cannot be written.
    """
    present = _present()
    if wanted != "auto" and wanted not in present:
        raise ValueError(f"cpu_matmul={wanted} is not in this torch, which has {present or 'neither'}; leave it out")
    layer = _costliest(model)
    if wanted != "auto":
        choice = Choice(wanted, {})
    elif len(present) < 2 or deterministic or layer is None or layer.weight.numel() < SMALL:
        choice = Choice(present[0] if present else None, {})
    else:
        choice = _measured_once(layer, Path(cache_dir) / "matmul.json")
    if choice.library == "onednn":
        use_onednn(model)
    return choice


def _present() -> list[str]:
    found = {"mkl": torch.backends.mkl.is_available(), "onednn": torch.backends.mkldnn.is_available()}  # type: ignore[no-untyped-call]
    return [name for name in NAMES if found[name]]


def _costliest(model: Any) -> nn.Linear | Conv1D | None:
    """Return a layer of the shape that has most weights in all its layers; None without linear layers.

    The head does not count: it multiplies the rows of responses only.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    layers = [layer for layer in linear_layers(model) if layer is not head]
    weights = Counter[torch.Size]()
    for layer in layers:
        weights[as_NK(layer).shape] += layer.weight.numel()
    return max(layers, key=lambda layer: weights[as_NK(layer).shape], default=None)


def _measured_once(layer: nn.Linear | Conv1D, file: Path) -> Choice:
    """Choose for matrices of this layer's shape on this machine; read the choice from `file` if it stands there."""
    shape = "x".join(map(str, as_NK(layer).shape))
    key = f"{cpu_name()}, torch {torch.__version__}, {shape}"

    def faster() -> Choice:
        speeds = measure(_like(layer))
        return Choice("onednn" if speeds["onednn"] > CLEARLY * speeds["mkl"] else "mkl", speeds)

    return measured_once(file, key, Choice, faster)


def _like(layer: nn.Linear | Conv1D) -> Tensor:
    """Return random weights of the layer's shape in its order in memory; its own may be split over processes."""
    weight = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    return weight.t() if isinstance(layer, Conv1D) else weight


def measure(weight_NK: Tensor, repeats: int = 5) -> dict[str, float]:
    """Measure each library in 1e9 operations per second and core, over a forward pass and both gradients.

    Runs are interleaved and the fastest counts. One thread is measured by its own time, so that other load on the
    machine hardly matters.
    """
    rows = max(64, min(ROWS, int(MOST_FLOP / (6 * weight_NK.numel()))))
    flop = 6 * rows * weight_NK.numel()
    generator = torch.Generator().manual_seed(0)  # leaves the run's own draws alone
    weight_NK = weight_NK.clone().requires_grad_()
    input_RK = torch.randn(rows, weight_NK.shape[1], generator=generator, requires_grad=True)
    libraries: dict[str, Callable[..., Tensor]] = {"mkl": nn.functional.linear, "onednn": onednn_linear}
    seconds = dict.fromkeys(libraries, float("inf"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(repeats):
            for name, linear in libraries.items():
                seconds[name] = min(seconds[name], _seconds(linear, input_RK, weight_NK))
    finally:
        torch.set_num_threads(threads)
    return {name: round(flop / 1e9 / spent, 1) for name, spent in seconds.items()}


@torch.enable_grad()
def _seconds(linear: Callable[..., Tensor], input_RK: Tensor, weight_NK: Tensor) -> float:
    began = time.thread_time()
    output_RN = linear(input_RK, weight_NK, None)
    torch.autograd.grad(output_RN, (input_RK, weight_NK), output_RN.detach())
    return time.thread_time() - began
