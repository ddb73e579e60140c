"""The report of `make bench` on the steps: a table for people, JSON for programs."""

import os
import platform
import statistics
from importlib import metadata
from typing import Any

import torch

from fed.cpu.runtime import allowed_cpus, cpu_name
from scripts.benchmark.baselines import trl_version
from scripts.benchmark.measure import GIGA, exact_memory
from scripts.benchmark.step_bench import SAME, Bench, Found
from scripts.benchmark.variants import FLOAT32, OURS
from scripts.benchmark.workload import token_means

# The first are compared with ours in the same precision, the others with ours in the faster one.
EXACT, FASTEST = ("trl_float32",), ("trl_default", "trl_best", "plain", "fedpo_original")
PACKAGES = ("torch", "transformers", "trl", "tokenizers", "numpy")


def text(bench: Bench, shape: str, threads: int) -> str:
    """Return the whole report, to be printed."""
    return "\n".join([*_heading(bench, shape, threads), "", *_table(bench), "", *_notes(bench)])


def _heading(bench: Bench, shape: str, threads: int) -> list[str]:
    parts = ", ".join(f"{name} {mean:.0f}" for name, mean in token_means(bench.given.batches).items())
    batches = "1 batch" if len(bench.work) == 1 else f"{len(bench.work)} batches"
    data = f"{batches} of {bench.work[0].pairs} {bench.given.source}"
    timed = "processor time of 1 thread" if threads == 1 else f"wall time, {threads} threads"
    peaks = ", ".join(f"{name} {peak / GIGA:.0f}" for name, peak in bench.peaks.items())
    return [
        f"One DPO step: {shape}, {bench.parameters / 1e6:.1f} million parameters, {data}",
        f"tokens of a pair: {parts} (byte-level BPE of {len(bench.given.tokenizer)} tokens, trained on these texts)",
        f"{cpu_name()}, torch {torch.__version__}, {timed}; {bench.choice}",
        f"largest matrix products, GFLOP/s: {peaks}",
    ]


def _table(bench: Bench) -> list[str]:
    width = max(len(name) for name in bench.found)
    wide = max(len(one.variant.meaning) for one in bench.found.values())
    columns = f"{'x ours':>7} {'s/step':>8} {'pairs/s':>8} {'tokens/s':>8} {'peak':>6} {'GB':>6}"
    head = f"{'':<{width}}  {'':<{wide}} {columns}"
    return [head, *(_row(bench, one, width, wide) for one in bench.found.values())]


def _row(bench: Bench, one: Found, width: int, wide: int) -> str:
    name = one.variant.name
    ratio = bench.ratio(name, OURS[bench.fastest])
    fewer = f" {'*' * len(one.seconds)}" if len(one.seconds) < len(bench.work) else ""
    return (
        f"{name:<{width}}  {one.variant.meaning:<{wide}} {ratio:>7.2f} {statistics.median(one.seconds.values()):>8.3g} "
        f"{bench.rate(name, lambda w: w.pairs):>8.3g} {bench.rate(name, lambda w: w.tokens):>8.0f} "
        f"{bench.peak_share(name):>6.1%} {one.own_memory / GIGA:>6.3g}{fewer}"
    )


def _notes(bench: Bench) -> list[str]:
    ours = OURS[bench.fastest]
    lines = [
        f"x ours    seconds divided by those of {ours}, ours in the faster precision here; median over batches",
        "tokens    prompt once, chosen, rejected; peak: 6 operations for each of them and each weight of the body, and",
        "          for each response token and weight of the head, as a share of the products above in that precision",
        "GB        weights, gradients, optimizer state, activations and the variant's own model copies, at the peak",
    ]
    if any(len(one.seconds) < len(bench.work) for one in bench.found.values()):
        lines.append(
            "*         on as many batches as stars: the others need more memory, or this processor emulates bfloat16"
        )
    if not exact_memory():
        lines.append(
            "          (only the memory beyond that of all steps before: this kernel cannot forget the highest memory)"
        )
    lines.append(_losses(bench))
    lines += [f"{name} takes {ratio:.2f} times as long as {against}" for name, against, ratio in _ratios(bench)]
    if trl_version() is None:
        lines.append("TRL is not installed, so its rows are missing: pip install -c constraints.txt -e '.[bench]'")
    return lines


def _losses(bench: Bench) -> str:
    ours = bench.found[OURS[FLOAT32]].loss
    apart = {
        precision: max(abs(one.loss - ours) for one in bench.found.values() if one.variant.precision == precision)
        for precision in {one.variant.precision for one in bench.found.values()}
    }
    parts = [f"{precision} losses within {apart[precision]:.1e}" for precision in sorted(apart, reverse=True)]
    summary = " and ".join(parts)
    return f"loss      of the first batch {ours:.6f}; {summary}"


def _ratios(bench: Bench) -> list[tuple[str, str, float]]:
    """Return (variant, ours, ratio) for each variant that was measured."""
    pairs = [(name, OURS[bench.fastest]) for name in FASTEST] + [(name, OURS[FLOAT32]) for name in EXACT]
    return [(name, ours, bench.ratio(name, ours)) for name, ours in pairs if name in bench.found]


def as_json(bench: Bench) -> dict[str, Any]:
    """Return everything measured, for JSON."""
    ours = bench.found[OURS[bench.fastest]]
    found: dict[str, Any] = {
        "ratios": {name: ratio for name, _, ratio in _ratios(bench)},
        "fastest": bench.fastest,
        "peak_share": bench.peak_share(ours.variant.name),
        "peak_memory_gb": ours.process_memory / GIGA,
    }
    if "trl_default" in bench.found:
        found["memory_ratio"] = ours.own_memory / bench.found["trl_default"].own_memory
    return {
        **found,
        "rows": {name: _row_json(bench, one) for name, one in bench.found.items()},
        "losses_agree_within": SAME,
        "data": {"source": bench.given.source, "tokens_per_pair": token_means(bench.given.batches)},
        "parameters": bench.parameters,
        "machine": _machine(bench),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def _row_json(bench: Bench, one: Found) -> dict[str, Any]:
    name = one.variant.name
    return {
        "meaning": one.variant.meaning,
        "precision": one.variant.precision,
        "seconds": {number + 1: seconds for number, seconds in one.seconds.items()},
        "ratio": bench.ratio(name, OURS[bench.fastest]),
        "pairs_per_second": bench.rate(name, lambda done: done.pairs),
        "tokens_per_second": bench.rate(name, lambda done: done.tokens),
        "peak_share": bench.peak_share(name),
        "own_memory_gb": one.own_memory / GIGA,
        "step_memory_gb": one.memory.growth / GIGA,
        "process_memory_gb": one.process_memory / GIGA,
        "loss": one.loss,
    }


def _machine(bench: Bench) -> dict[str, Any]:
    return {
        "cpu": cpu_name(),
        "cpus": allowed_cpus(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
        "system": platform.platform(),
        "peak_gflops": {name: peak / GIGA for name, peak in bench.peaks.items()},
        "float32_matrices": bench.choice.library,
        "memory_exact": exact_memory(),
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
