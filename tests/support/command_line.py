"""What one call of `python main.py ...` did, and what a refusal looks like."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL = ("comm_round=1", "client_num_in_total=2", "n_train_examples=40", "n_test_examples=16")


@dataclass(frozen=True)
class Result:
    """What one call of the command line did."""

    code: int
    out: str
    err: str
    folder: Path  # the working folder; runs go to its runs/

    @property
    def runs(self) -> list[Path]:
        """Of all experiments; a sweep's picture has a folder beside them."""
        return sorted(path for path in self.folder.glob("runs/*/*") if not path.name.startswith("sweep_"))

    @property
    def run(self) -> Path:
        assert self.code == 0, self.err
        (run,) = self.runs
        return run

    def lines(self, who: str = "server", split: str | None = None) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.run / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if line["who"] == who and split in (None, line["split"])]


CommandLine = Callable[..., Result]


def refused(result: Result, *words: str) -> None:
    """Exit code 2, one line that holds all words, nothing written."""
    assert result.code == 2, result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert all(word in result.err for word in words), result.err
    assert list(result.folder.iterdir()) == []
