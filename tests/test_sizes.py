"""Files and functions stay short enough to be read: the limits, and the exceptions, stand in pyproject.toml."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["sizes"]
FOLDERS = ("run", "clients", "server", "feedback", "fed", "losses", "scripts", "tests")


def source_files() -> list[Path]:
    return sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])


def lengths() -> Iterator[tuple[str, int, int]]:
    """Yield (name, lines, limit) of every file and of every function, whose name follows that of its file."""
    for path in source_files():
        source, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        yield name, source.count("\n"), SIZES["file_lines"]
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}:{node.name}", node.end_lineno - node.lineno + 1, SIZES["function_lines"]


def test_files_and_functions_are_no_longer_than_the_limits_but_for_the_named_exceptions() -> None:
    too_long = {name for name, lines, limit in lengths() if lines > limit}
    assert too_long == set(SIZES["exceptions"])


def test_there_are_few_exceptions_and_each_has_a_reason() -> None:
    assert len(SIZES["exceptions"]) <= 5
    assert all(len(reason.split()) >= 3 for reason in SIZES["exceptions"].values())
