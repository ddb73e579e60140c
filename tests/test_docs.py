"""README and docs: links lead somewhere, paths and names they mention exist, the README stays short."""

import ast
import re
from pathlib import Path

import pytest

from scripts import source_tree

ROOT = Path(__file__).parents[1]
README_WORDS = 750
LINE_LENGTH = 120
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob(".github/**/*.md")])
FOLDERS = ("clients", "config", "docs", "fed", "feedback", "losses", "run", "scripts", "server", "tests")
LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page whose file or heading does not exist."""
    broken = []
    for link in LINK.findall(CODE_BLOCK.sub("", page.read_text())):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            broken.append(link)
    return broken


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to headings: lower case, punctuation dropped, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def long_lines(text: str) -> list[str]:
    """Return lines over `LINE_LENGTH` characters; tables and the targets of links do not count."""
    lines = (LINK.sub("]", line) for line in text.splitlines() if not line.lstrip().startswith("|"))
    return [line for line in lines if len(line) > LINE_LENGTH]


def missing_paths(text: str) -> list[str]:
    """Return files and folders of the repository that code spans name but that do not exist."""
    spans = re.findall(r"`([\w./-]+)`", text)
    inside = [
        span for span in spans if "/" in span and span.split("/")[0] in FOLDERS and not re.search("[A-Z]{2}", span)
    ]
    return [span for span in inside if not (ROOT / span).exists()]


def missing_names(text: str) -> list[str]:
    """Return phrases like "`name` in `folder/file.py`" whose file does not define the name."""
    missing = []
    for name, file in re.findall(r"`([A-Za-z_.]+)`(?: \([^)]*\))? in\s+`([\w/]+\.py)`", text):
        tree = ast.parse((ROOT / file).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        plain = (target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets)
        typed = (node.target for node in tree.body if isinstance(node, ast.AnnAssign))
        defined |= {target.id for target in (*plain, *typed) if isinstance(target, ast.Name)}
        if not set(name.split(".")) <= defined:
            missing.append(f"{name} in {file}")
    return missing


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_lines_are_short(page):
    assert long_lines(page.read_text()) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=page_name)
def test_paths_and_names_exist(page):
    assert missing_paths(page.read_text()) == []
    assert missing_names(page.read_text()) == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= README_WORDS


def test_the_index_links_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(LINK.findall(index))


def test_the_tables_of_source_files_are_fresh():
    """Run `make docs` where this fails."""
    page = source_tree.PAGE.read_text()
    assert source_tree.with_tree(page) == page


def test_every_python_file_is_in_those_tables():
    page = source_tree.PAGE.read_text()
    tops = [folder for folder in FOLDERS if folder not in ("config", "docs", "tests")]
    files = [path for top in tops for path in (ROOT / top).rglob("*.py") if path.name != "__init__.py"]
    assert [path for path in files if f"(../{path.relative_to(ROOT)})" not in page] == []


def test_a_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="put them back"):
        source_tree.with_tree("# Architecture\n")


def test_what_is_wrong_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One Head\n[a](gone.md) [b](#one-head) [c](#two) [d](https://x.y/z)\n```\n[e](code.md)\n```\n")
    assert broken_links(page) == ["gone.md", "#two"]
    assert len(long_lines("x" * 121 + "\n| " + "y" * 200 + "\n[z](" + "u" * 200 + ")\n")) == 1
    assert missing_paths("`fed/gone.py` `losses/sft.py` `data/mine/`") == ["fed/gone.py"]
    assert missing_names("`dpo` in `losses/sft.py`, `sft` in `losses/sft.py`") == ["dpo in losses/sft.py"]
