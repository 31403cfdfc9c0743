"""Imports inside functions say what they buy, and what is imported first stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tangora

ROOT = Path(tangora.__file__).parent
Import = ast.Import | ast.ImportFrom

# Modules that are imported before it is known what is to be done; torch alone takes a second.
LIGHT = [
    "tangora",
    "tangora.cli",
    "tangora.errors",
    "tangora.checkpoints",
    "tangora.checkpoints.merge",
    "tangora.methods",
    "tangora.report",
    *(f"tangora.support.{name}" for name in ("extras", "files", "registry", "seams", "source", "validation", "yaml")),
    *(f"tangora.config.{path.stem}" for path in sorted((ROOT / "config").glob("*.py")) if path.stem != "__init__"),
]
HEAVY = ("torch", "transformers", "peft", "matplotlib", "datasets", "sklearn", "scipy", "numba")


def deferred(node: ast.AST, inside: bool = False) -> Iterator[Import]:
    """Imports in functions and under conditions other than ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            yield from deferred(ast.Module(child.orelse, []), inside)
            continue
        if isinstance(child, Import) and inside:
            yield child
        yield from deferred(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.If))


def unexplained(text: str) -> list[str]:
    """Deferred imports without ``# deferred: why``, which also stands for those on the lines right below it."""
    lines, found, explained = text.splitlines(), [], 0
    for node in sorted(deferred(ast.parse(text)), key=lambda node: node.lineno):
        own = lines[node.lineno - 1 : node.end_lineno]
        if any("# deferred: " in line for line in own) or node.lineno == explained + 1:
            explained = node.end_lineno or 0
        else:
            found.append(f"line {node.lineno}: {own[0].strip()}")
    return found


def test_every_deferred_import_says_why():
    files = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
    wrong = {name: found for name, text in files.items() if (found := unexplained(text))}
    assert not wrong, "move them to the top of the module, or say on the line what deferring buys: # deferred: ..."


def test_what_counts_as_explained():
    group = "def f():\n    import torch  # deferred: slow\n    import numpy\n\n    import scipy\n"
    assert unexplained(group) == ["line 5: import scipy"]
    assert unexplained("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy\n") == []
    assert unexplained("if fast:\n    import torch\n") == ["line 2: import torch"]


def loaded(code: str) -> set[str]:
    """Which heavy packages a fresh process has imported after some code."""
    ask = f"{code}\nimport sys; print('loaded', *[name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True, timeout=120)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_what_is_imported_first_is_light():
    assert not loaded("import " + ", ".join(LIGHT))


@pytest.fixture
def checkpoints(tmp_path):
    """A base and two models that were tuned from it."""
    import torch
    from safetensors.torch import save_file

    for seed, name in enumerate(("base", "x", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "toy"}')
        weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        save_file({"w": weights}, tmp_path / name / "model.safetensors")
    return tmp_path


def test_linear_fusion_of_checkpoints_does_without_torch(checkpoints):
    code = f"""
from pathlib import Path
from tangora.checkpoints import fuse_checkpoints
folder = Path({str(checkpoints)!r})
fuse_checkpoints(folder / "base", [folder / "x", folder / "y"], folder / "out", method="task_arithmetic", weights=0.5)
"""
    assert not loaded(code)
    assert (checkpoints / "out" / "model.safetensors").is_file()
