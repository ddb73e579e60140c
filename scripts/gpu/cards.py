"""The machine that is measured: its card with the bfloat16 peak, its processor and its packages."""

import platform
import re
import shutil
import subprocess
import time
from importlib import metadata
from typing import Any

import torch

from fed.cpu.runtime import allowed_cpus, cpu_name

# Dense bfloat16 products with float32 sums, 1e12 operations a second, from NVIDIA's data sheets (half of those "with
# sparsity"). The first name that matches counts; a card that is missing here has an unknown peak.
PEAKS = {
    "MIG": None,  # a slice of a card
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.5,
    "GH200": 989.5,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H100": 989.5,
    "A100": 312.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
PACKAGES = ("torch", "triton", "transformers", "accelerate", "flwr", "peft", "trl", "liger_kernel", "numpy")
SIDE = 8192  # of the square matrices of `product_rate`
REPEATS = 10
TERA = 1e12


def bf16_peak(name: str) -> float | None:
    """Return the operations per second of the card with that name, as torch gives it; None: unknown."""
    known = (peak for card, peak in PEAKS.items() if re.search(rf"\b{card}\b", name))
    peak = next(known, None)
    return None if peak is None else peak * TERA


def describe(device: torch.device) -> dict[str, Any]:
    """Return everything about the machine that a figure depends on."""
    found: dict[str, Any] = {
        "card": None,
        "peak_tflops": None,
        "cpu": cpu_name(),
        "cpus": allowed_cpus(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "packages": {name: _version(name) for name in PACKAGES},
    }
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        peak = bf16_peak(card.name)
        found |= {
            "card": card.name,
            "memory_gb": card.total_memory / 1e9,
            "capability": f"{card.major}.{card.minor}",
            "peak_tflops": None if peak is None else peak / TERA,
        }
    return found


@torch.no_grad()
def product_rate(device: torch.device, *, side: int = SIDE) -> float:
    """Measure the operations per second of a large bfloat16 product of random matrices: the median of ten."""
    left, right = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    seconds = []
    for _ in range(REPEATS + 3):  # the first warm the card up
        synchronize(device)
        start = time.perf_counter()
        left @ right
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return float(2 * side**3 / sorted(seconds[3:])[REPEATS // 2])


def synchronize(device: torch.device) -> None:
    """Wait for all work on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _driver() -> str | None:
    """Return the version of NVIDIA's driver, as `nvidia-smi` tells it; None: it does not."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.split("\n")[0].strip() or None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
