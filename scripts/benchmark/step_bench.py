"""Time and memory of one DPO step: all variants take turns on the same batches in one process."""

import gc
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fed.cpu.matmul import Choice, choose_library
from fed.cpu.onednn import use_torch
from fed.cpu.runtime import keep_freed_memory, return_freed_memory
from fed.data.examples import Example
from fed.model.policy import Policy, pair_logps
from scripts.benchmark.baselines import Models, Step
from scripts.benchmark.measure import (
    Memory,
    Work,
    available_memory,
    bytes_of,
    clock,
    matrix_peak,
    memory_of,
    size_of,
    work,
)
from scripts.benchmark.variants import BFLOAT16, FLOAT32, OURS, Setting, Variant
from scripts.benchmark.workload import SHAPES, Workload, random_model, workload

DTYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16}
STILL = 1e-12  # learning rate, too small to move a weight: every variant finds the same ones
SAME = 1e-4  # float32 losses differ by rounding only: log-probs of some 500 nats, times beta


@dataclass
class Found:
    """The measurements of one variant."""

    variant: Variant
    prepared: Callable[[], AbstractContextManager[Step]]
    seconds: dict[int, float] = field(default_factory=dict)  # by number of the batch
    loss: float = float("nan")  # on the first batch
    memory: Memory = field(default_factory=lambda: Memory(0, 0))  # of a step on the first batch
    held: int = 0  # bytes that the variant holds between steps: weights, optimizer state, its model copies
    foreign: int = 0  # bytes of model copies in this process that it would not hold

    @property
    def own_memory(self) -> int:
        """Weights, gradients, optimizer state, activations and model copies at their peak, without the process."""
        return self.held + self.memory.growth

    @property
    def process_memory(self) -> int:
        """The process at its peak, had it run this variant only."""
        return self.memory.peak - self.foreign


@dataclass(frozen=True)
class Bench:
    """Everything measured, with the data and the peaks it is read against."""

    found: dict[str, Found]
    work: list[Work]  # by batch
    peaks: dict[str, float]  # operations per second, by precision
    given: Workload
    parameters: int
    choice: Choice

    @property
    def fastest(self) -> str:
        """The precision in which our step is faster on this machine."""
        if OURS[BFLOAT16] not in self.found:
            return FLOAT32
        return BFLOAT16 if self.ratio(OURS[BFLOAT16], OURS[FLOAT32]) < 1 else FLOAT32

    def ratio(self, name: str, other: str) -> float:
        """Return the median of one's seconds divided by the other's, over the batches that both ran."""
        ones, others = self.found[name].seconds, self.found[other].seconds
        return statistics.median(seconds / others[number] for number, seconds in ones.items() if number in others)

    def rate(self, name: str, unit: Callable[[Work], float]) -> float:
        """Return the units per second over all batches of a variant."""
        seconds = self.found[name].seconds
        return sum(unit(self.work[number]) for number in seconds) / sum(seconds.values())

    def peak_share(self, name: str) -> float:
        """Return useful operations per second as a share of this machine's peak in the variant's precision."""
        return self.rate(name, lambda done: done.operations) / self.peaks[self.found[name].variant.precision]


def bench(shape: str, variants: Sequence[Variant], *, batch: int, repeats: int, threads: int, data_dir: Path) -> Bench:
    """Measure the variants on `repeats` batches.

    Raises:
        ValueError: If there is no such shape or the data is too short.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape={shape}; expected one of {', '.join(SHAPES)}")
    torch.set_num_threads(threads)
    now = clock(threads)
    peaks = {name: matrix_peak(dtype, now) for name, dtype in DTYPES.items()}
    given = workload(SHAPES[shape], data_dir, batch=batch, repeats=repeats)
    models = shared_models(shape, given)
    given = replace(given, batches=with_reference(models, given.tokenizer, given.batches))
    with tempfile.TemporaryDirectory() as folder:
        choice = matrix_library(models, folder)
        setting = Setting(models, given.tokenizer, batch, folder, choice.library)
        found = {variant.name: Found(variant, variant.build(setting)) for variant in variants}
        if choice.library == "mkl":
            found.pop("ours_mkl", None)  # it is the same as ours
        # Where the processor has no bfloat16, a step takes minutes.
        slow = {name for name, one in found.items() if peaks[one.variant.precision] < peaks[FLOAT32]}
        for one in found.values():
            first_step(one, models, given.batches[0], now, counts=one.variant.name in slow)
        take_turns([one for name, one in found.items() if name not in slow], given.batches, now)
    tell("")
    check_losses(found)
    size = size_of(models.policy)
    parameters = sum(p.numel() for p in models.policy.parameters())
    return Bench(found, [work(pairs, size) for pairs in given.batches], peaks, given, parameters, choice)


def shared_models(shape: str, given: Workload) -> Models:
    """Return policy, reference and server of different weights, and an optimizer whose state is filled."""
    policy, reference, server = (
        random_model(SHAPES[shape], given.tokenizer, name) for name in ("policy", "reference", "server")
    )
    reference.requires_grad_(False)
    return Models(policy, reference, server, fill_optimizer(policy))


def fill_optimizer(policy: Any) -> torch.optim.Optimizer:
    """Return an optimizer of the policy's weights that moves none, with its state filled."""
    optimizer = torch.optim.AdamW(policy.parameters(), lr=STILL, weight_decay=0.0, fused=True)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return optimizer


def with_reference(models: Models, tokenizer: Any, batches: Sequence[Sequence[Example]]) -> list[list[Example]]:
    """Return the batches with their reference column, for the variants that precompute it."""
    reference = Policy(models.reference, tokenizer, models.device)
    return [
        [replace(e, reference=logps) for e, logps in zip(b, pair_logps(reference, b, batch_size=len(b)), strict=True)]
        for b in batches
    ]


def matrix_library(models: Models, folder: str) -> Choice:
    """Return the library that the project chooses here, and leave the model unchanged."""
    choice = choose_library(models.policy, "auto", cache_dir=folder)
    use_torch(models.policy)
    return choice


def first_step(one: Found, models: Models, pairs: Sequence[Example], now: Callable[[], float], *, counts: bool) -> None:
    """Take the step that gives loss and memory; its seconds count if `counts`, else it is a warm-up."""
    tell(f"first step of {one.variant.name}")
    keep_freed_memory(one.variant.keeps_freed_memory)
    count_memory(one, models)
    with one.prepared() as step:
        if counts:
            step([min(pairs, key=lambda pair: pair.length)])  # the warm-up

        def run() -> None:
            one.loss, seconds = timed(step, pairs, now)
            if counts:
                one.seconds[0] = seconds

        one.memory = memory_of(run)


def count_memory(one: Found, models: Models) -> None:
    """Count the bytes that the variant holds between steps and those that others hold, without gradients."""
    copies = {"reference": models.reference, "server": models.server}
    for parameter in models.server.parameters():
        parameter.grad = None
    sizes = {name: bytes_of(model.parameters()) for name, model in copies.items()}
    used = sum(size for name, size in sizes.items() if getattr(one.variant, name))
    one.held, one.foreign = held_by_all(models) + used, sum(sizes.values()) - used


def held_by_all(models: Models) -> int:
    """Return the bytes of weights and optimizer state."""
    slots = [value for state in models.optimizer.state.values() for value in state.values()]
    return bytes_of([*models.policy.parameters(), *(value for value in slots if isinstance(value, Tensor))])


def take_turns(found: Sequence[Found], batches: Sequence[Sequence[Example]], now: Callable[[], float]) -> None:
    """Give each batch to all variants in turn; later batches only to those that have the memory for them."""
    found = sorted(found, key=lambda one: one.variant.keeps_freed_memory)  # switched once per batch then
    kept: bool | None = None
    for number, pairs in enumerate(batches):
        for one in found:
            tell(f"batch {number + 1} of {len(batches)}: {one.variant.name}")
            if number and not one.variant.keeps_freed_memory and not fits(one, pairs, batches[0]):
                continue
            with one.prepared() as step:
                if one.variant.keeps_freed_memory is not kept:
                    kept = one.variant.keeps_freed_memory
                    keep_freed_memory(kept)
                    if kept:  # as training has by its second step
                        step(pairs)
                one.seconds[number] = timed(step, pairs, now)[1]


def fits(one: Found, pairs: Sequence[Example], first: Sequence[Example]) -> bool:
    """Return True if there is memory for these pairs, judged by the first ones; freed memory is given back first."""
    return_freed_memory()
    padded, measured = (len(batch) * max(pair.length for pair in batch) for batch in (pairs, first))
    return one.memory.growth * padded / measured < available_memory()


def timed(step: Step, pairs: Sequence[Example], now: Callable[[], float]) -> tuple[float, float]:
    """Take a step and return its loss and seconds."""
    gc.collect()
    start = now()
    loss = step(pairs)
    return loss, now() - start


def check_losses(found: dict[str, Found]) -> None:
    """Check that all float32 variants found the same loss; else they would not compute the same thing."""
    ours = found[OURS[FLOAT32]].loss
    for name, one in found.items():
        assert one.variant.precision != FLOAT32 or abs(one.loss - ours) < SAME, f"{name}: {one.loss}, ours {ours}"


def tell(what: str) -> None:
    """Show the progress if stderr is a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)
