"""main.py scripts/ -> comparison/ experiment.py -> plan.py -> clients/ server/ -> fed/ -> ... as MAY_IMPORT says."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each part may import of the project, besides itself.
MAY_IMPORT = {
    "main": {
        "comparison",
        "ray_engine",
        "experiment",
        "federation",
        "plan",
        "clients",
        "server",
        "fed",
        "load_data",
        "losses",
    },
    "ray_engine": {"client_app", "experiment", "federation", "plan", "clients", "fed"},
    "server_app": {"experiment", "federation", "plan", "fed"},
    "client_app": {"plan", "clients", "fed", "load_data"},
    "experiment": {"federation", "plan", "clients", "server", "fed", "load_data", "losses"},
    "federation": {"plan", "clients", "server", "fed", "load_data", "losses"},
    "plan": {"clients", "server", "fed", "load_data", "losses"},
    "comparison": {"fed", "load_data", "losses"},
    "scripts": {
        "main",
        "comparison",
        "experiment",
        "federation",
        "plan",
        "clients",
        "server",
        "fed",
        "load_data",
        "losses",
        "sources",
    },
    "clients": {"fed", "load_data", "losses"},
    "server": {"fed", "load_data", "losses"},
    "fed": {"load_data", "losses"},
    "load_data": {"sources"},
    "losses": set(),
    "sources": set(),
}
# Parts that know little of the world: what else they may import, besides the standard library.
THIRD_PARTY = {"losses": {"torch"}, "load_data": {"datasets"}, "sources": {"datasets"}}

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


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def files() -> list[Path]:
    found = [ROOT / f"{part}.py" for part in MAY_IMPORT if (ROOT / f"{part}.py").is_file()]
    return found + [path for part in MAY_IMPORT for path in sorted((ROOT / part).glob("**/*.py"))]


def imports(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of each import, inside functions too; name is "" for `import module`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def turned_round(part: str, source: str) -> set[str]:
    """Imports that a file of `part` may not have."""
    roots = {module.partition(".")[0] for module, _ in imports(source)}
    wrong = (roots & MAY_IMPORT.keys()) - MAY_IMPORT[part] - {part}
    if part in THIRD_PARTY:
        wrong |= roots - MAY_IMPORT.keys() - THIRD_PARTY[part] - sys.stdlib_module_names
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
    assert not turned_round(part_of(path), path.read_text())


def test_every_python_file_of_the_project_has_its_place():
    tops = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py"}
    tops |= {path.parent.relative_to(ROOT).parts[0] for path in ROOT.glob("[a-z]*/**/*.py")}
    assert tops - {"tests", "build", "data"} == MAY_IMPORT.keys()


def test_only_the_grid_uses_flowers_private_names():
    found = {
        (str(path.relative_to(ROOT)), name)
        for path in files()
        if "flwr" in {module.partition(".")[0] for module, _ in imports(path.read_text())}
        for name in flower_internals(path.read_text())
        if path.name != "grid.py"
    }
    assert found == FLOWER_ACCEPTED


def test_the_grid_does_use_them():
    """Or the test above would look for the wrong thing."""
    found = flower_internals((ROOT / "fed" / "grid.py").read_text())
    assert {"flwr.supercore.run.Run", "flwr.supercore.task_identity.TaskIdentity", "_message_id"} <= found


@pytest.mark.parametrize(
    ("part", "source", "wrong"),
    [
        ("fed", "from clients.app import client_app", {"clients"}),
        ("clients", "import server.app", {"server"}),
        ("server", "def f():\n    from clients import app", {"clients"}),
        ("losses", "import numpy", {"numpy"}),
        ("losses", "from fed.data.tokens import Batch", {"fed"}),
        ("load_data", "import torch", {"torch"}),
        ("load_data", "from losses.logps import Logps", {"losses"}),
        ("sources", "import load_data", {"load_data"}),
        ("fed", "import torch\nfrom losses.logps import Logps\nfrom fed import config", set()),
    ],
)
def test_an_arrow_that_turns_round_is_found(part, source, wrong):
    assert turned_round(part, source) == wrong
