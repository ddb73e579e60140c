"""The text that `gpu_check` prints: the findings of each part as soon as it ends, and finally all parts and goals."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.gpu.cards import TERA
from scripts.gpu.processes import DONE, SKIPPED, Outcome
from scripts.gpu.steps import OURS, TRL

SHOWN = 5  # kernels
Found = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """A figure that is aimed at, and the one that was measured."""

    meaning: str
    aim: float
    value: float | None  # None: not measured
    at_most: bool = False

    @property
    def is_met(self) -> bool | None:
        """True if the figure is reached; None if it was not measured."""
        if self.value is None:
            return None
        return self.value < self.aim if self.at_most else self.value >= self.aim


def machine(found: Found) -> str:
    """Return the line about the machine."""
    packages, peak = found["packages"], found["peak_tflops"]
    card = found["card"] or f"no GPU, {found['cpu']}"
    memory = f", {found['memory_gb']:.0f} GB" if found["card"] else ""
    flops = f"bfloat16 peak {'unknown' if peak is None else f'{peak:.0f} TFLOP/s'}"
    versions = f"torch {packages['torch']}, transformers {packages['transformers']}, Python {found['python']}"
    trl = f"TRL {packages['trl'] or 'not installed'}, Liger {packages['liger_kernel'] or 'not installed'}"
    return f"{card}{memory}, {flops}; driver {found['driver'] or 'unknown'}; {versions}; {trl}"


def text(outcome: Outcome) -> str:
    """Return the findings of a part, as far as it came."""
    head = f"{outcome.part.name}: {outcome.part.meaning}: {outcome.status} in {outcome.seconds:.0f} s"
    reason = [f"  {outcome.reason}"] if outcome.reason else []
    shown = {"suite": _tests, "steps": _steps, "kernels": _kernels, "federation": _federation, "comparison": _compare}
    return "\n".join([head, *reason, *(f"  {line}" for line in shown[outcome.part.module](outcome.found))])


def _tests(found: Found) -> Iterator[str]:
    if "counts" in found:
        yield ", ".join(f"{number} {outcome}" for outcome, number in found["counts"].items())
        yield from (f"failed: {name}" for name, one in found["tests"].items() if one["outcome"] == "failed")
    if found.get("running"):
        yield f"still running: {found['running']}"


def _steps(found: Found) -> Iterator[str]:
    rows = found.get("rows", {})
    if not rows:
        return
    peak, product = found["machine"]["peak_tflops"], found.get("product_tflops")
    measured = "" if product is None else f"; a large bfloat16 product runs at {product:.0f} TFLOP/s"
    weights = f"{found['shape']}, {found['parameters'] / 1e6:.1f} million weights"
    yield f"{weights}, steps of up to {found['batch']} pairs{measured}"
    wide = max(len(row["meaning"]) for row in rows.values())
    head = f"{'pairs/s':>9} {'by ours':>8} {'tokens/s':>9} {'peak':>7} {'GB':>6} {'pairs':>6} {'loss':>9}"
    yield f"{'':<{wide}} {head}"
    ours = rows.get(OURS, {}).get("pairs_per_second")
    for row in rows.values():
        yield f"{row['meaning']:<{wide}} {_figures(row, ours, peak)}"


def _figures(row: Found, ours: float | None, peak: float | None) -> str:
    rate = row["pairs_per_second"]
    if rate is None:
        return f"  {row['error']}"
    share, loss = peak_share(row, peak), row["loss"]
    return (
        f"{rate:>9.1f} {'' if ours is None else f'{ours / rate:.2f}':>8} {row['tokens_per_second']:>9.0f} "
        f"{'unknown' if share is None else f'{share:.1%}':>7} {row['memory_gb']:>6.2f} {row['pairs_per_step']:>6} "
        f"{'none' if loss is None else f'{loss:.5f}':>9}"
    )


def peak_share(row: Found, peak: float | None) -> float | None:
    """Return the useful operations of a row as a share of the card's bfloat16 peak; None: unknown."""
    rate = row["operations_per_second"]
    return None if rate is None or peak is None else rate / (peak * TERA)


def _kernels(found: Found) -> Iterator[str]:
    if "largest" not in found:
        return
    busy = "unknown" if found["busy"] is None else f"{found['busy']:.0%}"
    yield (
        f"a step: {found['wall_milliseconds']:.1f} ms, in {busy} of which a kernel ran; "
        f"{found['launches']:.0f} kernels, {found['kernel_milliseconds']:.1f} ms together"
    )
    for one in found["largest"][:SHOWN]:
        yield f"{one['share']:>6.1%} {one['milliseconds']:>8.2f} ms {one['calls']:>6.0f} x  {one['name'][:80]}"


def _federation(found: Found) -> Iterator[str]:
    if "federation_share" in found:
        size = f"{found['rounds']} rounds of {found['steps']} steps of {found['batch']} pairs"
        share = f"of all time {found['federation_share']:.1%} without a model"
        yield f"{found['clients']} clients, {size}: {found['seconds_per_round']:.1f} s a round, {share}"
        yield ", ".join(f"{phase} {seconds:.2f} s" for phase, seconds in found["phases"].items())


def _compare(found: Found) -> Iterator[str]:
    if "table" in found:
        yield f"seeds {', '.join(map(str, found['seeds']))}"
        yield from found["table"]
    if "note" in found:
        yield found["note"]


def goals(found: Mapping[str, Found]) -> list[Goal]:
    """Return the goals with what the parts, by name, measured."""
    shapes = {"step_gpt2": "GPT-2", "step_smollm2": "135M", "step_llama1b": "1B"}
    return [
        *(
            Goal(f"pairs/s over TRL's best, {size}", 5.0, _over_trl(found.get(part, {})))
            for part, size in shapes.items()
        ),
        Goal("useful operations over the peak, 135M", 0.40, _own_share(found.get("step_smollm2", {}))),
        Goal("useful operations over the peak, 1B", 0.50, _own_share(found.get("step_llama1b", {}))),
        Goal("federation's share of the time", 0.03, found.get("federation", {}).get("federation_share"), at_most=True),
    ]


def _over_trl(found: Found) -> float | None:
    rows = found.get("rows", {})
    ours = rows.get(OURS, {}).get("pairs_per_second")
    theirs = [rows[name]["pairs_per_second"] for name in TRL if rows.get(name, {}).get("pairs_per_second")]
    return ours / max(theirs) if ours and theirs else None


def _own_share(found: Found) -> float | None:
    row = found.get("rows", {}).get(OURS)
    return None if row is None else peak_share(row, found["machine"]["peak_tflops"])


def closing(outcomes: Sequence[Outcome], reached: Sequence[Goal]) -> str:
    """Return the last lines: the end of every part, and every goal beside its figure."""
    wide = max(len(goal.meaning) for goal in reached)
    lines = [f"{one.part.name:<14} {one.status:<12} {one.seconds:>5.0f} s  {one.reason}".rstrip() for one in outcomes]
    words = {True: "reached", False: "missed", None: "not measured"}
    for goal in reached:
        value = "" if goal.value is None else f"{goal.value:.3g}"
        aim = f"{'under' if goal.at_most else 'at least'} {goal.aim:g}"
        lines.append(f"{goal.meaning:<{wide}} {value:>7}  goal: {aim}, {words[goal.is_met]}")
    return "\n".join(lines)


def succeeded(outcomes: Sequence[Outcome]) -> bool:
    """Return True if a part was done and none failed or ran out of time."""
    statuses = {one.status for one in outcomes}
    return DONE in statuses and statuses <= {DONE, SKIPPED}
