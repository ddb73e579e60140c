"""The part `tests`: the tests marked `gpu`, each with its result as soon as it has one."""

import importlib
import importlib.util
import os
from typing import Any

from scripts.gpu.parts import ROOT, Failed, Options, Part, Report, Skip

# The files that hold tests marked `gpu`. Others are not read: they take time, and packages that a machine may lack.
FILES = (
    "tests/model/test_attention.py",
    "tests/data/test_packing.py",
    "tests/losses/test_fused.py",
    "tests/clients/test_optimizers.py",
    "tests/model/test_lora.py",
    "tests/model/test_generation.py",
    "tests/distributed/test_one_rank.py",
    "tests/run/test_on_a_device.py",
)
OUTCOMES = ("passed", "failed", "skipped")


def run(part: Part, options: Options, report: Report) -> None:
    """Run the tests; dry, one file of them, whose tests a machine without a GPU skips.

    Raises:
        Skip: If pytest is not installed.
        Failed: If a test failed, or there was none.
    """
    if importlib.util.find_spec("pytest") is None:
        raise Skip("pytest is not installed")
    pytest = importlib.import_module("pytest")
    os.chdir(ROOT)
    recorder = Recorder(report)
    # Warnings of other versions than the tested ones are no failures.
    how = ["-m", "gpu", "-o", "filterwarnings=default", "-p", "no:cacheprovider", "--tb=short"]
    code = pytest.main([*how, *(FILES[:1] if options.dry else FILES)], plugins=[recorder])
    failed = [name for name, one in recorder.tests.items() if one["outcome"] == "failed"]
    if failed:
        raise Failed(f"{len(failed)} of {len(recorder.tests)} failed; the first: {failed[0]}")
    if code or not recorder.tests:
        raise Failed(f"pytest ended with {int(code)} after {len(recorder.tests)} tests")


class Recorder:
    """A plug-in of pytest that reports each test as it begins and ends."""

    def __init__(self, report: Report) -> None:
        self.tests: dict[str, dict[str, Any]] = {}
        self._report = report

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note which test runs, in case it never ends."""
        self._report.add(running=nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note the result: that of the test itself, or of what failed or was skipped before or after it."""
        if report.when == "call" or report.outcome != "passed":
            self._note(report.nodeid, report.outcome, report.duration, str(report.longrepr or ""))

    def pytest_collectreport(self, report: Any) -> None:
        """Note a file that cannot be read."""
        if report.outcome == "failed":
            self._note(report.nodeid, report.outcome, 0.0, str(report.longrepr))

    def pytest_sessionfinish(self) -> None:
        """Note that no test runs any more."""
        self._report.add(running=None)

    def _note(self, name: str, outcome: str, seconds: float, why: str) -> None:
        if self.tests.get(name, {}).get("outcome") == "failed":  # a failure is not undone by what follows
            return
        self.tests[name] = {"outcome": outcome, "seconds": seconds, "why": why[-1500:] if outcome == "failed" else ""}
        counts = {name: sum(one["outcome"] == name for one in self.tests.values()) for name in OUTCOMES}
        self._report.add(tests=self.tests, counts=counts)
