"""Files of responses, and a call of `scripts.judge` on them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fed.tracking.line_files import read_lines
from scripts.judge import main


def responses(path: str, texts: Callable[[int, int], str], *, n: int = 2, count: int = 4, name: str = "m") -> None:
    """Write `n` responses to each of some prompts."""
    lines = [
        {
            "prompt": [{"role": "user", "content": f"question {index}"}],
            "completion": texts(index, draw),
            "group": f"g{index % 2}",
            "generator": name,
            "index": index,
            "draw": draw,
        }
        for index in range(count)
        for draw in range(n)
    ]
    Path(path).write_text("".join(json.dumps(line) + "\n" for line in lines))


def good_or_bad(index: int, draw: int) -> str:
    """Return a good response in draw 0 of even questions, and in draw 1 of odd ones."""
    return f"{'good' if (index + draw) % 2 == 0 else 'bad'} {draw}"


@pytest.fixture
def judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return a function that has files judged, and returns exit code, records, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    responses("two.jsonl", good_or_bad)

    def call(*arguments: str, out: str = "out.jsonl") -> tuple[int, list[dict[str, Any]], str, str]:
        code = main([*arguments, f"out={out}"])
        captured = capsys.readouterr()
        return code, list(read_lines(Path(out))), captured.out, captured.err

    return call
