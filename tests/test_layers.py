"""Imports point one way, from wing to wing as `WINGS` lists them, and no files import each other in a circle."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The chain: a file imports only from its own wing and from wings in rows below its own.
WINGS = (
    ("scripts",),
    ("main",),
    ("run",),
    ("clients", "server", "load_data"),
    ("feedback",),
    ("fed.simulation", "fed.reports"),
    ("fed.grids",),
    ("fed.checkpoints", "fed.privacy"),
    ("fed.model", "fed.tracking"),
    ("fed.data", "fed.cpu", "fed.distributed"),
    ("fed.config",),
    ("fed.files", "fed.foreign", "fed.intervals", "fed.seeding"),
    ("fed.errors",),
    ("losses",),
)
DEPTH = {wing: depth for depth, row in enumerate(WINGS) for wing in row}
TOPS = {wing.partition(".")[0] for wing in DEPTH}
# Wings that know little of the world: all they may import besides the standard library.
THIRD_PARTY: dict[str, set[str]] = {"losses": {"torch"}, "load_data": set()}

# Flower's public modules. Everything else it may move in a minor release.
FLOWER_PUBLIC = {
    *("flwr.app", "flwr.clientapp", "flwr.clientapp.mod", "flwr.clientapp.typing", "flwr.serverapp"),
    "flwr.serverapp.strategy",
    "flwr.simulation",
}
# Private names in use outside fed/grids/local.py, with the reason.
FLOWER_ACCEPTED = {
    ("run.own_client", "flwr.supernode.cli.flwr_clientapp.flwr_clientapp"),  # the program of a message, and where it
    ("run.own_client", "flwr.supernode.runtime.run_clientapp"),  # takes its client app from: tests/attacks/ would tell
    ("server.strategies", "flwr.supercore.log"),  # the logger that Flower's own strategies write to
    ("server.strategies", "_check_and_log_replies"),  # of FedAvg: a subclass checks replies as its parent does
}


def files() -> dict[str, str]:
    """Return the source of each module of the project."""
    paths = [path for top in TOPS for path in (ROOT / f"{top}.py", *(ROOT / top).rglob("*.py")) if path.is_file()]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return {name: path.read_text() for name, path in sorted(zip(names, paths, strict=True))}


FILES = files()


def wing_of(module: str) -> str:
    """Return the wing of a module: `fed.data` for `fed.data.rows`, `clients` for `clients.step`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "fed" else parts[0]


def imports(source: str) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each import, inside functions too; name is "" for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def turned_round(wing: str, source: str) -> set[str]:
    """Return the imports that a file of `wing` may not have."""
    named = {f"{module}.{name}" if module == "fed" else module for module, name in imports(source)}
    wings = {wing_of(name) for name in named if name.partition(".")[0] in TOPS}
    wrong = {other for other in wings if other != wing and DEPTH[other] <= DEPTH[wing]}
    if wing in THIRD_PARTY:
        roots = {name.partition(".")[0] for name in named}
        wrong |= roots - TOPS - THIRD_PARTY[wing] - sys.stdlib_module_names
    return wrong


def imported_files(sources: Mapping[str, str]) -> dict[str, set[str]]:
    """Return, for each module, those of the others that it imports."""
    found = {}
    for module, source in sources.items():
        named = {f"{other}.{name}" if f"{other}.{name}" in sources else other for other, name in imports(source)}
        found[module] = named & sources.keys()
    return found


def circle(graph: Mapping[str, Set[str]]) -> list[str]:
    """Return modules that import each other in a circle, the first one again at the end; [] if there are none."""
    done: set[str] = set()

    def search(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        found: list[str] = []
        if module not in done:
            found = next(filter(None, (search(other, [*way, module]) for other in sorted(graph[module]))), [])
            done.add(module)
        return found

    return next(filter(None, (search(module, []) for module in sorted(graph))), [])


def flower_internals(source: str) -> set[str]:
    """Return Flower's non-public modules, and names with an underscore that the file itself does not define."""
    found = {f"{module}.{name}".rstrip(".") for module, name in imports(source) if module.split(".")[0] == "flwr"}
    found = {name for name in found if name not in FLOWER_PUBLIC and name.rpartition(".")[0] not in FLOWER_PUBLIC}
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    private = {name for name in used if re.fullmatch(r"_[a-z]\w*[a-z0-9]", name)}
    return found | (private - own)


def test_imports_point_one_way() -> None:
    wrong = {module: turned_round(wing_of(module), source) for module, source in FILES.items() if module != "fed"}
    assert {module: wings for module, wings in wrong.items() if wings} == {}


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = imported_files(FILES)
    assert "fed.data.rows" in graph["fed.data.tokens"], "otherwise imports are not found"
    assert circle(graph) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"a": "import b", "b": "from c import d", "c": "import b"}, ["b", "c", "b"]),
        ({"a": "import a"}, ["a", "a"]),
        ({"a": "def f():\n    from b import c", "b.c": "import a"}, ["a", "b.c", "a"]),
        ({"a": "import b\nimport c", "b": "import c", "c": "import os"}, []),
    ],
)
def test_a_circle_is_found(sources: dict[str, str], expected: list[str]) -> None:
    assert circle(imported_files(sources)) == expected


def test_every_python_file_of_the_project_has_its_place() -> None:
    assert {wing_of(module) for module in FILES} - {"fed"} == DEPTH.keys()
    found = {path.relative_to(ROOT).with_suffix("").parts[0] for path in ROOT.glob("[a-z]*/**/*.py")}
    assert found <= {*TOPS, "tests", "build", "data"}
    assert {path.stem for path in ROOT.glob("*.py")} == {"main", "load_data"}


def test_only_the_grid_uses_flowers_private_names() -> None:
    found = {
        (module, name)
        for module, source in FILES.items()
        if "flwr" in {other.partition(".")[0] for other, _ in imports(source)}
        for name in flower_internals(source)
        if module != "fed.grids.local"
    }
    assert found == FLOWER_ACCEPTED


def test_the_grid_does_use_them() -> None:
    """Otherwise the test above would look for the wrong thing."""
    found = flower_internals(FILES["fed.grids.local"])
    assert {"flwr.supercore.run.Run", "flwr.supercore.task_identity.TaskIdentity", "_message_id"} <= found


@pytest.mark.parametrize(
    ("wing", "source", "wrong"),
    [
        ("fed.grids", "from clients.app import client_app", {"clients"}),
        ("clients", "import server.app", {"server"}),
        ("server", "def f():\n    from clients import app", {"clients"}),
        ("losses", "import numpy", {"numpy"}),
        ("losses", "from fed.data.tokens import Batch", {"fed.data"}),
        ("load_data", "import datasets", {"datasets"}),
        ("fed.data", "from fed import privacy", {"fed.privacy"}),
        ("fed.data", "from load_data import load", {"load_data"}),
        ("fed.tracking", "from fed.model import policy", {"fed.model"}),
        ("fed.files", "import fed.seeding", {"fed.seeding"}),
        ("fed.model", "import torch\nfrom losses.logps import Logps\nfrom fed.config import schema", set()),
    ],
)
def test_an_arrow_that_turns_round_is_found(wing: str, source: str, wrong: set[str]) -> None:
    assert turned_round(wing, source) == wrong
