"""Write the tables of source files in docs/architecture.md from the files' own docstrings: `make docs`."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- tree: written by make docs -->", "<!-- end of tree -->"
# "" holds the files of the top level; the others are taken with all folders below them.
TOPS = ("", "run", "clients", "server", "feedback", "fed", "losses", "scripts")


def main() -> int:
    """Write the page; return exit code 0."""
    PAGE.write_text(with_tree(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


def with_tree(page: str) -> str:
    """Return the page with new tables between its two markers.

    Raises:
        ValueError: If a marker is missing.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"docs/architecture.md lacks the lines {BEGIN} and {END}; put them back")
    return f"{before}{BEGIN}\n\n{tree()}\n{END}{after}"


def tree() -> str:
    """Return one heading and table for each folder, files in alphabetical order."""
    return "\n".join(line for folder in _folders() for line in _table(folder))


def _folders() -> Iterator[str]:
    for top in TOPS:
        found = {path.parent for path in (ROOT.glob("*.py") if not top else (ROOT / top).rglob("*.py"))}
        yield from (path.relative_to(ROOT).as_posix() for path in sorted(found))


def _table(folder: str) -> Iterator[str]:
    files = sorted(path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py")
    yield "### The top level" if folder == "." else f"### {folder}/"
    yield ""
    if (ROOT / folder / "__init__.py").is_file():
        yield f"{_first_line(ROOT / folder / '__init__.py')}"
        yield ""
    yield "| file | holds |"
    yield "|---|---|"
    for path in files:
        yield f"| [{path.name}](../{path.relative_to(ROOT)}) | {_first_line(path)} |"
    yield ""


def _first_line(path: Path) -> str:
    """Return the first line of the file's docstring, ready for a table."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
