"""physics/ knows nothing of the tasks: it imports nothing from envs/ above it."""

import ast
from pathlib import Path

import pytest

PHYSICS = Path(__file__).parent.parent / "envs" / "physics"


def imported_modules(source):
    """Full names of the modules that a file in envs/physics/ imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            package = ["envs", "physics"][: 3 - node.level] if node.level > 0 else []
            module = ".".join([*package, *filter(None, [node.module])])
            # `from envs import physics` imports envs.physics, but `from torch import nn` is torch to us
            yield from (f"{module}.{name.name}" for name in node.names) if module == "envs" else [module]


def imports_from_above(source):
    ours = [name for name in imported_modules(source) if name.split(".")[0] == "envs"]
    return [name for name in ours if name.split(".")[:2] != ["envs", "physics"]]


@pytest.mark.parametrize("path", sorted(PHYSICS.glob("*.py")), ids=lambda path: path.name)
def test_physics_imports_nothing_from_above(path):
    assert imports_from_above(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "import envs",
        "import envs.render",
        "from envs import make",
        "from envs.ant import Ant",
        "from ..render import TILES",
    ],
)
def test_an_import_from_above_is_found(line):
    assert len(imports_from_above(f"def late():\n    {line}\n")) == 1
