"""A digest of code: what a cached result was computed by, so that it is not reused after the code has changed.

The digest of a function or an object covers the module that defines it and every module of Tangora that this one
imports, directly or not, also inside functions. Of a module it covers what runs: comments, docstrings and layout do not
count, so that better prose invalidates nothing. For a third party's module the version of its distribution counts too.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Iterable
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Any

__all__ = ["source_digest"]

_OURS = "tangora"


def source_digest(*objects: Any, without: Iterable[str] = ()) -> str:
    """Return the sha-256 (hex) of the code that the objects run.

    Args:
        objects: functions, classes, instances (of which the class counts) or modules.
        without: packages of Tangora that do not decide a result, such as ``tangora.progress``.

    An object that was defined in a notebook or on the prompt counts by the source of the object itself.
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
                parts.add(f"{module} {_module_digest(module)}")
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
    """The module and every module of ours that it imports, directly or not."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        if (module := waiting.pop()) not in seen:
            seen.add(module)
            waiting += _imports(module)
    return frozenset(seen)


@cache
def _tree(name: str) -> ast.Module | None:
    file = _file(name)
    return ast.parse(file.read_text(encoding="utf-8")) if file is not None else None


@cache
def _file(name: str) -> Path | None:
    """The source of a module, or None: a name inside of a module, and a compiled module, have none.

    It is looked up as a path, since Python imports the packages around a module to find it, and all that these import.
    """
    top, *rest = name.split(".")
    spec = util.find_spec(top)
    if spec is None:
        return None
    places = [Path(place, *rest) for place in spec.submodule_search_locations or ()]
    files = [file for place in places for file in (place / "__init__.py", place.with_suffix(".py"))]
    if not rest and spec.origin is not None and spec.origin.endswith(".py"):
        files = [Path(spec.origin)]
    return next((file for file in files if file.is_file()), None)


@cache
def _imports(name: str) -> tuple[str, ...]:
    tree = _tree(name)
    if tree is None:
        return ()
    found: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            waiting.extend(node.orelse)
            continue
        waiting.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = util.resolve_name("." * node.level + (node.module or ""), _package_of(name))
            found |= {package, *(f"{package}.{alias.name}" for alias in node.names)}
    roots = (_OURS, name.partition(".")[0])
    return tuple(sorted(m for m in found if m.partition(".")[0] in roots and _file(m) is not None))


def _package_of(name: str) -> str:
    file = _file(name)
    return name if file is not None and file.name == "__init__.py" else name.rpartition(".")[0]


@cache
def _module_digest(name: str) -> str:
    """Of what a module runs: its syntax tree without docstrings."""
    tree = _tree(name)
    if tree is None:
        return "compiled"
    for node in ast.walk(tree):
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
    for distribution in metadata.packages_distributions().get(package, []):
        return f"{distribution} {metadata.version(distribution)}"
    return package
