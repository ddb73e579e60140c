"""`python -m scripts.gpu_check`: its parts run in processes of their own, and what they find is kept and printed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from scripts import gpu_check
from scripts.gpu import processes, suite, table
from scripts.gpu.parts import PARTS, ROOT, Options, Part, Report
from scripts.gpu.processes import DONE, FAILED, LATE, SKIPPED, Outcome
from support.forked import Fork

# In the place of scripts/gpu_part.py: no torch, and an end of every kind.
ENTRY = """
import json, os, signal, subprocess, sys, time
name, file, *typed = sys.argv[1:]
found = {"machine": {"who": name}, "typed": typed}
if name == "skips":
    found["skipped"] = "no model"
if name in ("fails", "hangs"):
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    found["child"] = subprocess.Popen(command, start_new_session=name == "hangs").pid
with open(file, "w") as out:
    json.dump(found, out)
print("this is", name, flush=True)
if name == "fails":
    raise ValueError("of its own")
if name == "dies":
    os.kill(os.getpid(), signal.SIGSEGV)
if name == "hangs":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
"""


@pytest.fixture
def ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """Return parts of which each ends in another way."""
    (tmp_path / "entry.py").write_text(ENTRY)
    monkeypatch.setattr(processes, "ENTRY", tmp_path / "entry.py")
    monkeypatch.setattr(processes, "GRACE", 0.2)
    monkeypatch.setattr(table, "machine", lambda found: f"machine of {found['who']}")
    names = ("fails", "hangs", "dies", "skips", "ends")
    return [Part(name, f"it {name}", "suite", 1.5 if name == "hangs" else 60) for name in names]


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_part_that_fails_hangs_or_dies_stops_no_other(
    ends: list[Part], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = gpu_check.carry_out_all(ends, ["batch=3"], tmp_path, Options())
    assert [one.status for one in outcomes] == [FAILED, LATE, FAILED, SKIPPED, DONE]
    failed, late, died, skipped, done = outcomes
    assert failed.reason == "ValueError: of its own"
    assert died.reason == "ended by SIGSEGV; its last line: this is dies"
    assert skipped.reason == "no model"
    assert has_ended(late.found["child"]) and has_ended(failed.found["child"]), "what it started ends with it"
    assert late.seconds < 20 and done.found["typed"][0] == "batch=3" and done.found["typed"][-1].startswith("seconds=")
    log = (tmp_path / "gpu_check.log").read_text()
    assert re.findall("^this is (.*)$", log, re.MULTILINE) == [part.name for part in ends]
    assert capsys.readouterr().out.splitlines()[0] == "machine of fails"
    assert not table.succeeded(outcomes) and table.succeeded([skipped, done]) and not table.succeeded([skipped])


def test_the_file_is_whole_after_every_part(ends: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is cut off in its last part keeps all parts before it."""
    kept: list[dict[str, object]] = []
    original = gpu_check.carry_out

    def watched(*given: object) -> Outcome:
        file = tmp_path / "gpu_check.json"
        kept.append(json.loads(file.read_text())["parts"] if file.is_file() else {})
        return original(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(gpu_check, "carry_out", watched)
    gpu_check.carry_out_all([ends[0], ends[3], ends[4]], [], tmp_path, Options())
    assert [list(parts) for parts in kept] == [[], ["fails"], ["fails", "skips"]]
    found = json.loads((tmp_path / "gpu_check.json").read_text())
    assert found["parts"]["fails"]["status"] == "failed" and found["machine"] == {"who": "fails"}


def test_parts_for_which_no_time_is_left_are_skipped(ends: list[Part], tmp_path: Path) -> None:
    outcomes = gpu_check.carry_out_all(ends[3:], [], tmp_path, Options(seconds=4))
    assert [(one.status, one.reason) for one in outcomes] == [(SKIPPED, "no time is left")] * 2


def test_parts_come_in_the_order_that_the_page_tells() -> None:
    steps = ("step_gpt2", "step_smollm2", "step_llama1b")
    assert [part.name for part in PARTS] == ["tests", *steps, "kernels", "federation", "compare"]


def test_all_parts_but_the_last_leave_it_time() -> None:
    spent = sum(part.seconds for part in PARTS[:-1])
    assert spent + 60 < Options().seconds < 480


def test_the_docs_name_every_part_with_its_seconds() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(\w+)` \| (\d+|all that is left) \|", page, re.MULTILINE)
    assert told == [(part.name, "all that is left" if part is PARTS[-1] else str(part.seconds)) for part in PARTS]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([f"folder={tmp_path / 'found'}"]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    assert said.err.startswith("error: torch ") and "finds no GPU on this machine; use dry=true" in said.err


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("dri=true", "unknown option dri=true; expected dry=, parts="),
        ("parts=step", "parts=step: there is no step; expected all or some of tests, step_gpt2,"),
        ("parts=[]", "parts is empty; expected all or some of tests, step_gpt2,"),
        ("model=/nowhere", "model=/nowhere has no effect with dry=true, which takes tiny models; leave it out"),
        ("seconds=0", "seconds=0 is too small"),
        ("folder=/dev/null/x", "folder=/dev/null/x cannot be made: Not a directory"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(argument: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["dry=true", argument]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and told in err and err.count("\n") == 1


def test_a_model_that_does_not_exist_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["model=/nowhere"]) == 2
    assert capsys.readouterr().err == "error: model=/nowhere does not exist; give a GGUF file or a directory\n"


def test_a_call_in_which_no_part_ran_has_not_succeeded(tmp_path: Path) -> None:
    assert gpu_check.main(["dry=true", "seconds=3", f"folder={tmp_path}"]) == 1


def test_a_dry_run_walks_through_all_parts_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are forked, which saves their imports; the tests, which pytest cannot run within itself, are below."""
    monkeypatch.setattr(subprocess, "Popen", Fork)
    monkeypatch.chdir(tmp_path)
    parts = [part for part in PARTS if part.name != "tests"]
    options = Options(dry=True, folder=str(tmp_path / "found"))
    (tmp_path / "found").mkdir()
    outcomes = gpu_check.carry_out_all(parts, ["dry=true", f"folder={options.folder}"], tmp_path / "found", options)
    log = (tmp_path / "found" / "gpu_check.log").read_text()
    assert [one.status for one in outcomes] == [DONE] * len(parts), log
    found = json.loads((tmp_path / "found" / "gpu_check.json").read_text())
    step, kernels, federation, compared = (
        found["parts"][name] for name in ("step_smollm2", "kernels", "federation", "compare")
    )
    rates = {name: row["pairs_per_second"] for name, row in step["rows"].items()}
    assert min(rates.values()) > 0 and {"ours_bfloat16", "ours_float32", "plain", "plain_bfloat16"} <= rates.keys()
    losses = {name: row["loss"] for name, row in step["rows"].items()}
    assert losses["ours_float32"] == pytest.approx(losses["plain"], abs=1e-5)
    assert losses["ours_bfloat16"] == pytest.approx(losses["plain"], abs=0.01)
    assert 0 < kernels["busy"] <= 1 and 0 < sum(one["share"] for one in kernels["largest"]) <= 1.000001
    assert 0 < federation["federation_share"] < 1 and federation["phases"]["train"] > 0
    assert compared["seeds"] == [0] and {"| fedpo", "| centralized", "| local"} <= {
        line.rpartition(" |")[0].partition(" |")[0] for line in compared["table"]
    }
    assert (tmp_path / "found" / "compare" / "compare.md").is_file()
    assert {goal["value"] for goal in found["goals"]} == {None}, "tiny models on a CPU reach no goal and miss none"


TESTS = """
import pytest
pytestmark = pytest.mark.gpu
def test_a(): pass
def test_b(): assert 1 == 2
def test_c(): pytest.skip("no card")
@pytest.fixture
def broken(): raise KeyError("away")
def test_d(broken): pass
"""


def test_each_test_is_reported_when_it_ends(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_unreadable.py").write_text("import nowhere")
    names = ["test_some.py", "test_unreadable.py"]
    files = [*(str(tmp_path / name) for name in names), "--continue-on-collection-errors"]
    program = (
        "from pathlib import Path; from scripts.gpu import suite; from scripts.gpu.parts import *; "
        f"suite.FILES = {files}; suite.run(PARTS[0], Options(), Report(Path('{tmp_path}/found.json')))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    found = json.loads((tmp_path / "found.json").read_text())
    ended = {name.rpartition(":")[2]: one["outcome"] for name, one in found["tests"].items()}
    unreadable = next(name for name in ended if "unreadable" in name)
    assert ended == {
        "test_a": "passed",
        "test_b": "failed",
        "test_c": "skipped",
        "test_d": "failed",
        unreadable: "failed",
    }
    assert found["counts"] == {"passed": 1, "failed": 3, "skipped": 1} and found["running"] is None
    assert done.stderr.splitlines()[-1].startswith("scripts.gpu.parts.Failed: 3 of 5 failed; the first: ")


def test_the_part_of_tests_reads_every_file_with_a_test_for_a_gpu() -> None:
    marked = re.compile(r"mark\.gpu\b|^def \w+\([^)]*\bdevice: torch|^def test_\w+\([^)]*\bdevice\b", re.MULTILINE)
    files = (path for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__))
    assert {str(path.relative_to(ROOT)) for path in files if marked.search(path.read_text())} == set(suite.FILES)


def test_a_report_holds_null_in_place_of_what_is_no_number(tmp_path: Path) -> None:
    report = Report(tmp_path / "found.json")
    report.add(rows={"a": {"loss": float("nan"), "seconds": [1.0, float("inf")]}})
    assert json.loads((tmp_path / "found.json").read_text()) == {"rows": {"a": {"loss": None, "seconds": [1.0, None]}}}
