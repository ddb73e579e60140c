"""The parts `step_...`: one DPO step of a model of random weights on pairs as long as those of HH, ours beside others'.

All variants take the step on the same pairs with the same optimizer, whose learning rate is too small to move a weight.
A variant for which there is not enough memory takes half as many pairs, and so on.
"""

import gc
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fed.cpu.runtime import peak_memory
from fed.data.examples import Example
from scripts.benchmark.baselines import Models, Step, plain_step, trl_version
from scripts.benchmark.measure import GIGA, bytes_of, size_of, work
from scripts.benchmark.step_bench import fill_optimizer, with_reference
from scripts.benchmark.variants import (
    BFLOAT16,
    FLOAT32,
    HEAD,
    TRL_BEST,
    VARIANTS,
    Setting,
    Variant,
    others_step,
    our_step,
    trl_step,
)
from scripts.benchmark.variants import OURS as OF_PRECISION
from scripts.benchmark.workload import SHAPES, random_model
from scripts.gpu.cards import TERA, product_rate, synchronize
from scripts.gpu.pairs import made_pairs, word_tokenizer
from scripts.gpu.parts import SHORTER, Failed, Options, Part, Report

OURS = OF_PRECISION[BFLOAT16]
TRL = ("trl_default", "trl_best", "trl_liger")
BATCHES = 2  # of different pairs, in turn
REPEATS = 3  # of each batch
SECONDS = 4.0  # after which no further step of a variant begins
SAME_PAIRS = 8  # on which the losses of all variants are compared


def plain_bfloat16(models: Models, pairs: Sequence[Example]) -> float:
    """Take one step of the original DPO code, its forward passes in bfloat16."""
    with torch.autocast(models.device.type, dtype=torch.bfloat16):
        return plain_step(models, pairs)


# Of the benchmark's variants those that matter on a GPU, and others. Liger replaces layers of the model for good, so it
# comes last.
_KNOWN = {variant.name: variant for variant in VARIANTS}
ON_GPU = (
    replace(_KNOWN[OURS], meaning="ours, bfloat16"),
    _KNOWN["trl_default"],
    _KNOWN["trl_best"],
    Variant("plain_bfloat16", "the original DPO code, bfloat16", others_step(plain_bfloat16), BFLOAT16, reference=True),
    _KNOWN["plain"],
    replace(_KNOWN[OF_PRECISION[FLOAT32]], meaning="ours, float32"),
    Variant("ours_padded", "ours, bfloat16, padded in place of packed", our_step(HEAD, torch.bfloat16), BFLOAT16),
    replace(_KNOWN["ours_recompute_bfloat16"], meaning="ours, bfloat16, activations recomputed"),
    Variant(
        "trl_liger",
        "TRL, bfloat16, reference precomputed, Liger's kernels",
        trl_step(**TRL_BEST, use_liger_kernel=True),
        BFLOAT16,
    ),
)


def able() -> list[Variant]:
    """Return the variants whose packages are installed."""
    missing = {"trl_": trl_version() is None, "trl_liger": importlib.util.find_spec("liger_kernel") is None}
    return [one for one in ON_GPU if not any(gone and one.name.startswith(name) for name, gone in missing.items())]


@dataclass
class Timed:
    """The measurements of one variant."""

    variant: Variant
    pairs: int = 0  # in a step
    seconds: dict[int, list[float]] = field(default_factory=dict)  # by number of the batch
    memory: int = 0  # bytes at the peak, without models that the variant does not need
    loss: float = float("nan")  # on the pairs that all variants take
    error: str = ""


@dataclass(frozen=True)
class Stage:
    """The models, and the pairs of each batch with their reference column."""

    shape: str
    setting: Setting
    batches: list[list[Example]]

    @property
    def models(self) -> Models:
        """The models that all variants share."""
        return self.setting.models


@contextmanager
def stage(part: Part, options: Options) -> Iterator[Stage]:
    """Make a part's models, with random weights and the optimizer's state filled, and its batches.

    Dry, it is the demo's model on the CPU, with a few short pairs.
    """
    device = torch.device("cpu" if options.dry else "cuda")
    shape, batch, shorter = ("tiny", 2, SHORTER) if options.dry else (part.shape, options.batch, 1)
    tokenizer = word_tokenizer(SHAPES[shape].vocabulary)
    policy, reference = (random_model(SHAPES[shape], tokenizer, name, device) for name in ("policy", "reference"))
    models = Models(policy, reference.requires_grad_(False), None, fill_optimizer(policy))
    pairs = made_pairs(BATCHES * batch, SHAPES[shape].vocabulary, shorter)
    batches = [pairs[i : i + batch] for i in range(0, len(pairs), batch)]
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(models, tokenizer, batch, folder, None)
        yield Stage(shape, setting, with_reference(models, tokenizer, batches))


def run(part: Part, options: Options, report: Report) -> None:
    """Measure all variants, one after the other, and report each; dry, the demo's model in their place.

    Raises:
        Failed: If our own step failed.
    """
    rows: dict[str, dict[str, Any]] = {}
    with stage(part, options) as on:
        if not options.dry:
            report.add(product_tflops=product_rate(on.models.device) / TERA)
        size, parameters = size_of(on.models.policy), sum(p.numel() for p in on.models.policy.parameters())
        report.add(shape=on.shape, parameters=parameters, batch=on.setting.batch)
        for variant in able():
            print(f"{variant.name}: {variant.meaning}", flush=True)
            found = measure(variant, on, dry=options.dry)
            rows[variant.name] = as_row(found, [work(pairs[: found.pairs], size) for pairs in on.batches])
            print(rows[variant.name], flush=True)
            report.add(rows=rows)
    if rows[OURS]["error"]:
        raise Failed(f"{OURS}: {rows[OURS]['error']}")


def measure(variant: Variant, on: Stage, *, dry: bool) -> Timed:
    """Time a variant on as many pairs as there is memory for; an error of its own ends it and is kept."""
    found, size = Timed(variant), len(on.batches[0])
    while size:
        try:
            found.pairs = size
            _time(found, on, [pairs[:size] for pairs in on.batches], repeats=1 if dry else REPEATS)
            return found
        except torch.OutOfMemoryError:
            size //= 2
            found.error = "not enough memory for one pair"
        except Exception as error:  # whatever another implementation raises on this machine
            found.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            return found
        finally:
            on.models.optimizer.zero_grad(set_to_none=True)
            _release(on.models.device)
    return found


def _time(found: Timed, on: Stage, batches: Sequence[Sequence[Example]], *, repeats: int) -> None:
    device = on.models.device
    found.seconds, found.error = {}, ""
    with found.variant.build(on.setting)() as step:
        first = batches[0][:SAME_PAIRS]
        loss = step(first)  # compiles what is compiled
        found.loss = loss if len(first) == len(on.batches[0][:SAME_PAIRS]) else float("nan")
        step(batches[0])
        _release(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        began = time.perf_counter()
        for number in [*range(len(batches))] * repeats:
            found.seconds.setdefault(number, []).append(_seconds(step, batches[number], device))
            if time.perf_counter() - began > SECONDS:
                break
    found.memory = (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()) - (
        0 if found.variant.reference else bytes_of(on.models.reference.parameters())
    )


def _seconds(step: Step, pairs: Sequence[Example], device: torch.device) -> float:
    synchronize(device)
    start = time.perf_counter()
    step(pairs)
    synchronize(device)
    return time.perf_counter() - start


def _release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def as_row(found: Timed, works: Sequence[Any]) -> dict[str, Any]:
    """Return the measurements as numbers a second: pairs, useful tokens and operations; each None if there are none."""
    medians = {number: statistics.median(times) for number, times in found.seconds.items()}
    done, spent = [works[number] for number in medians], sum(medians.values())

    def rate(unit: str) -> float | None:
        return sum(getattr(one, unit) for one in done) / spent if spent else None

    return {
        "meaning": found.variant.meaning,
        "precision": found.variant.precision,
        "pairs_per_step": found.pairs,
        "seconds": list(found.seconds.values()),
        "pairs_per_second": rate("pairs"),
        "tokens_per_second": rate("tokens"),
        "operations_per_second": rate("operations"),
        "memory_gb": found.memory / GIGA,
        "loss": found.loss,
        "error": found.error,
    }
