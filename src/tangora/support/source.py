"""A digest of the code that computed a cached result, so that the result is not reused after the code has changed.

The digest of a function or an object covers the module that defines it and every module of Tangora that this one
imports, directly or not, also inside functions. Only code that runs counts: a change of comments, docstrings or layout
invalidates nothing. For a third party's module the version of its distribution counts too.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

__all__ = ["source_digest"]

_OURS = "tangora"


def source_digest(*objects: Any, without: Iterable[str] = ()) -> str:
    """Return the sha-256 (hex) of the code that the objects run.

    Args:
        objects: functions, classes, instances (their class counts) or modules.
        without: packages of Tangora that do not affect a result, such as ``tangora.progress``.

    For an object that was defined in a notebook or at the prompt, the source of the object itself counts.
    """
    left_out = tuple(without)
    parts: set[str] = set()
    for thing in objects:
        target = thing if inspect.ismodule(thing) or inspect.isroutine(thing) or inspect.isclass(thing) else type(thing)
        name = target.__name__ if inspect.ismodule(target) else target.__module__
        if name in ("__main__", "builtins") or util.find_spec(name) is None:
            parts.add(f"source {_text_of(target)}")
            continue
        for module in sorted(_closure(name)):
            if not any(module == skip or module.startswith(skip + ".") for skip in left_out):
                parts.add(f"{module} {_read(module).digest}")
        if (package := name.partition(".")[0]) != _OURS:
            parts.add(f"version {_version(package)}")
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


def _text_of(target: Any) -> str:
    try:
        return inspect.getsource(target)
    except (OSError, TypeError):  # typed at the prompt: only its name is known
        return f"{target.__module__}.{getattr(target, '__qualname__', target)}"


@cache
def _closure(name: str) -> frozenset[str]:
    """Return the module and every module of Tangora that it imports, directly or not."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        if (module := waiting.pop()) not in seen:
            seen.add(module)
            waiting += _read(module).imports
    return frozenset(seen)


@dataclass(frozen=True)
class _Module:
    """What counts of a module.

    Attributes:
        imports: names of modules of Tangora, or of the module's own package, that it imports.
        digest: of its syntax tree without docstrings.
    """

    imports: tuple[str, ...] = ()
    digest: str = "compiled"


@cache
def _read(name: str) -> _Module:
    """Parse a module once; no tree is kept, since a process with all of them takes seconds to collect garbage."""
    file = _file(name)
    if file is None:
        return _Module()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return _Module(_imports(tree, name), _digest(tree))


@cache
def _file(name: str) -> Path | None:
    """Return the source file of a module; None for a name inside a module, and for a compiled module.

    The file is looked up as a path: to find a module, Python would import the packages around it.
    """
    top, *rest = name.split(".")
    spec = util.find_spec(top)
    if spec is None:
        return None
    paths = [Path(root, *rest) for root in spec.submodule_search_locations or ()]
    files = [file for path in paths for file in (path / "__init__.py", path.with_suffix(".py"))]
    if not rest and spec.origin is not None and spec.origin.endswith(".py"):
        files = [Path(spec.origin)]
    return next((file for file in files if file.is_file()), None)


def _imports(tree: ast.Module, name: str) -> tuple[str, ...]:
    names: set[str] = set()
    for node in _statements(tree, typing=False):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = util.resolve_name("." * node.level + (node.module or ""), _package_of(name))
            names |= {package, *(f"{package}.{alias.name}" for alias in node.names)}
    roots = (_OURS, name.partition(".")[0])
    return tuple(sorted(m for m in names if m.partition(".")[0] in roots and _file(m) is not None))


def _statements(tree: ast.Module, *, typing: bool = True) -> Iterator[ast.AST]:
    """Yield the module and every statement in it, but no expression: most nodes are parts of those.

    Args:
        typing: also what is below ``if TYPE_CHECKING``.
    """
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        checked = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for block in ("body", "handlers", "cases", "orelse", "finalbody"):
            if typing or not checked or block == "orelse":
                waiting += getattr(node, block, ())


def _package_of(name: str) -> str:
    file = _file(name)
    return name if file is not None and file.name == "__init__.py" else name.rpartition(".")[0]


def _digest(tree: ast.Module) -> str:
    """Return the digest of a module's syntax tree, after removing its docstrings."""
    for node in _statements(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _version(package: str) -> str:
    for distribution in _distributions(_places()).get(package, []):
        return f"{distribution} {metadata.version(distribution)}"
    return package


def _places() -> tuple[tuple[str, int], ...]:
    """Return folder -> time of its last change for all that packages are imported from; to install one changes it."""
    return tuple((place, os.stat(place).st_mtime_ns) for place in sys.path if place and os.path.exists(place))


@cache
def _distributions(places: tuple[tuple[str, int], ...]) -> Mapping[str, list[str]]:
    """Return package -> distributions with it. All installed files are read for it, a quarter of a second each time."""
    return metadata.packages_distributions()
