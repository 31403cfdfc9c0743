"""Imports point down: the layers of the package, deferred imports counted, imports for type checkers not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import tangora

ROOT = Path(tangora.__file__).parent

# Top first; packages on one line know nothing of each other.
LAYERS = (
    ("testing",),
    ("api",),
    ("cli",),
    ("runs",),
    ("report",),
    ("routing",),
    ("coefficients", "analysis", "inspection", "polishing"),
    ("evaluation",),
    ("modes",),
    ("tangent", "modular", "extraction"),
    ("checkpoints",),
    ("fusion", "serving", "tasks"),
    ("adapters",),
    ("methods",),
    ("config", "updates", "storage", "quickstart"),
    ("progress", "support"),
    ("errors",),
)
FLOOR = {name: len(LAYERS) - i for i, names in enumerate(LAYERS) for name in names}
MODULES = sorted(p for p in ROOT.rglob("*.py") if p.parent != ROOT or p.stem in FLOOR)


def name_of(path: Path) -> str:
    """The dotted name of a module, without ``tangora.``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES}


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import of the project in a file, but for those under ``if TYPE_CHECKING:``."""
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        for dotted in _names(node):
            if dotted == "tangora" or dotted.startswith("tangora."):
                yield node.lineno, _module(dotted.removeprefix("tangora").removeprefix("."))


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def _module(dotted: str) -> str:
    """The longest prefix that is a module: ``support.files.digest`` is a name of ``support.files``."""
    while dotted and dotted not in NAMES:
        dotted = dotted.rpartition(".")[0]
    return dotted


def test_every_package_has_a_layer() -> None:
    found = {name.split(".")[0] for name in NAMES}
    assert found == FLOOR.keys()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = name_of(path).split(".")[0]
    wrong = []
    for line, module in imports(path):
        other = module.split(".")[0]
        if other != own and (not other or FLOOR[other] >= FLOOR[own]):
            wrong.append(f"line {line}: {module or 'tangora'}")
    assert not wrong, f"{name_of(path)} imports what is not below it: {wrong}"


def test_there_is_no_circle_of_modules() -> None:
    graph = {name_of(path): {m for _, m in imports(path)} - {name_of(path)} for path in MODULES}
    # A module of a package runs the package's own __init__ first; only what __init__ names is an edge.
    left = dict(graph)
    while leaves := [name for name, below in left.items() if not below & left.keys()]:
        for name in leaves:
            del left[name]
    assert not left, f"in or above a circle: {sorted(left)}"
