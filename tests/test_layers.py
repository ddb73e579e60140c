"""Imports point one way, from wing to wing, as `WINGS` lists them."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The chain: a file imports only from its own wing and from wings that stand below it here.
WINGS = (
    ("scripts",),
    ("main",),
    ("run",),
    ("clients", "server", "load_data"),
    ("fed.simulation", "fed.reports"),
    ("fed.grids",),
    ("fed.checkpoints", "fed.privacy"),
    ("fed.model", "fed.tracking"),
    ("fed.data", "fed.cpu", "fed.distributed"),
    ("fed.config",),
    ("fed.files", "fed.seeding"),
    ("fed.errors",),
    ("losses",),
)
DEPTH = {wing: depth for depth, row in enumerate(WINGS) for wing in row}
# Shards that know little of the world: what else they may import, besides the standard library.
THIRD_PARTY = {"losses": {"torch"}, "load_data": {"datasets"}}

# Flower's public modules. Everything else it may move in a minor release.
FLOWER_PUBLIC = {
    *("flwr.app", "flwr.clientapp", "flwr.clientapp.mod", "flwr.clientapp.typing", "flwr.serverapp"),
    "flwr.serverapp.strategy",
    "flwr.simulation",
}
# Private names in use outside fed/grids/local.py, with the reason.
FLOWER_ACCEPTED = {
    ("server/strategies.py", "flwr.supercore.log"),  # the logger that Flower's own strategies write to
    ("server/strategies.py", "_check_and_log_replies"),  # of FedAvg: a subclass checks replies as its parent does
}


def wing_of(module: str) -> str:
    """`fed.data.rows` stands in the wing `fed.data`, `clients.step` in `clients`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "fed" and len(parts) > 1 else parts[0]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def files() -> list[Path]:
    tops = {wing.partition(".")[0] for wing in DEPTH}
    return sorted(path for path in ROOT.glob("*/**/*.py") if path.relative_to(ROOT).parts[0] in tops) + [
        path for path in sorted(ROOT.glob("*.py"))
    ]


def imports(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of each import, inside functions too; name is "" for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def turned_round(wing: str, source: str) -> set[str]:
    """Imports that a file of `wing` may not have."""
    tops = {name.partition(".")[0] for name in DEPTH}
    named = {f"{module}.{name}" if module == "fed" else module for module, name in imports(source)}
    wings = {wing_of(name) for name in named if name.partition(".")[0] in tops}
    wrong = {other for other in wings if other != wing and DEPTH[other] <= DEPTH.get(wing, -1)}
    if wing in THIRD_PARTY:
        roots = {name.partition(".")[0] for name in named}
        wrong |= roots - tops - THIRD_PARTY[wing] - sys.stdlib_module_names
    return wrong


def flower_internals(source: str) -> set[str]:
    """Flower's non-public modules, and names with an underscore that the file itself does not define."""
    found = {f"{module}.{name}".rstrip(".") for module, name in imports(source) if module.split(".")[0] == "flwr"}
    found = {name for name in found if name not in FLOWER_PUBLIC and name.rpartition(".")[0] not in FLOWER_PUBLIC}
    tree = ast.parse(source)
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    private = {name for name in used if re.fullmatch(r"_[a-z]\w*[a-z0-9]", name)}
    return found | (private - own)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    assert not turned_round(wing_of(module_of(path)), path.read_text())


def test_every_python_file_of_the_project_has_its_place():
    found = {wing_of(module_of(path)) for path in files()} - {"fed"}
    assert found == DEPTH.keys()
    assert {path.parts[0] for path in map(lambda p: p.relative_to(ROOT), ROOT.glob("[a-z]*/**/*.py"))} <= {
        *(wing.partition(".")[0] for wing in DEPTH),
        "tests",
        "build",
        "data",
    }


def test_only_the_grid_uses_flowers_private_names():
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in files()
        if "flwr" in {module.partition(".")[0] for module, _ in imports(path.read_text())}
        for name in flower_internals(path.read_text())
        if module_of(path) != "fed.grids.local"
    }
    assert found == FLOWER_ACCEPTED


def test_the_grid_does_use_them():
    """Or the test above would look for the wrong thing."""
    found = flower_internals((ROOT / "fed" / "grids" / "local.py").read_text())
    assert {"flwr.supercore.run.Run", "flwr.supercore.task_identity.TaskIdentity", "_message_id"} <= found


@pytest.mark.parametrize(
    ("wing", "source", "wrong"),
    [
        ("fed.grids", "from clients.app import client_app", {"clients"}),
        ("clients", "import server.app", {"server"}),
        ("server", "def f():\n    from clients import app", {"clients"}),
        ("losses", "import numpy", {"numpy"}),
        ("losses", "from fed.data.tokens import Batch", {"fed.data"}),
        ("load_data", "import torch", {"torch"}),
        ("fed.data", "from fed import privacy", {"fed.privacy"}),
        ("fed.data", "from load_data import load", {"load_data"}),
        ("fed.tracking", "from fed.model import policy", {"fed.model"}),
        ("fed.files", "import fed.seeding", {"fed.seeding"}),
        ("fed.model", "import torch\nfrom losses.logps import Logps\nfrom fed.config import schema", set()),
    ],
)
def test_an_arrow_that_turns_round_is_found(wing, source, wrong):
    assert turned_round(wing, source) == wrong
