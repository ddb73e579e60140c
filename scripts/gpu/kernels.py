"""The part `kernels`: the kernels in which our step spends its time, by torch's profiler."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from scripts.gpu.cards import synchronize
from scripts.gpu.parts import Options, Part, Report
from scripts.gpu.steps import ON_GPU, OURS, stage

STEPS = 3
KEPT = 20  # kernels in the JSON file


def run(part: Part, options: Options, report: Report) -> None:
    """Profile steps of ours in bfloat16 and report the largest kernels; dry, operators of the CPU."""
    (variant,) = (one for one in ON_GPU if one.name == OURS)
    with stage(part, options) as on, variant.build(on.setting)() as step:
        device = on.models.device
        for pairs in on.batches:
            step(pairs)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        synchronize(device)
        with profile(activities=activities) as profiler:
            for _ in range(STEPS):
                step(on.batches[0])
            synchronize(device)
    report.add(shape=on.shape, batch=on.setting.batch, **summary(profiler.events(), device, STEPS))


def summary(events: Any, device: torch.device, steps: int) -> dict[str, Any]:
    """Return the largest kernels of so many steps, and the share of the time in which a kernel ran.

    Args:
        events: What `torch.profiler.profile.events()` returns; times in microseconds.
        device: On "cuda" kernels count, on "cpu" operators, without those that they call.
        steps: The steps that were profiled.
    """
    kind = device.type.upper()  # as torch names it
    own = [one for one in events if one.device_type.name == kind and not getattr(one, "is_user_annotation", False)]
    spent: dict[str, list[float]] = {}
    for one in own:
        spent.setdefault(one.name, []).append(_microseconds(one, kind))
    whole = sum(map(sum, spent.values()))
    largest = sorted(spent.items(), key=lambda item: -sum(item[1]))
    wall = max((e.time_range.end for e in events), default=0) - min((e.time_range.start for e in events), default=0)
    return {
        "kernel_milliseconds": whole / steps / 1e3,  # of a step
        "wall_milliseconds": wall / steps / 1e3,
        "busy": _covered(own) / wall if wall else None,
        "launches": len(own) / steps,
        "largest": [
            {
                "name": name,
                "milliseconds": sum(times) / steps / 1e3,
                "share": sum(times) / whole,
                "calls": len(times) / steps,
            }
            for name, times in largest[:KEPT]
        ],
    }


def _microseconds(event: Any, kind: str) -> float:
    return float(event.self_cpu_time_total if kind == "CPU" else event.time_range.elapsed_us())


def _covered(events: Sequence[Any]) -> float:
    """Return the microseconds in which at least one of the events ran."""
    covered, until = 0.0, float("-inf")
    for start, stop in sorted((one.time_range.start, one.time_range.end) for one in events):
        covered += max(0.0, stop - max(start, until))
        until = max(until, stop)
    return covered
