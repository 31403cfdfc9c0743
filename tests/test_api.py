"""The public names, and that importing the package costs nothing."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tangora

FIRST = [
    "Adapter", "TangentModel", "TangoraError", "TaskVector", "collect_statistics", "distill", "finetune", "fuse",
    "fuse_checkpoints", "linearize", "load", "load_model", "load_recipe", "methods", "run",
]  # fmt: skip
LATER = [
    "Base", "Dense", "FinetuneConfig", "LowRank", "Task", "analyze", "compare", "evaluate", "export", "extract",
    "fusion_method", "load_base", "load_task", "polish", "predict", "predictor", "push", "route", "search", "table",
]  # fmt: skip
PACKAGES = ["analysis", "coefficients", "methods", "tasks", "testing"]


def test_the_public_names_are_pinned():
    assert tangora.__all__ == sorted({*FIRST, *LATER, *PACKAGES})
    assert dir(tangora) == tangora.__all__
    for name in (*FIRST, *LATER):
        assert callable(getattr(tangora, name)), name


def test_the_names_for_type_checkers_are_the_same():
    tree = ast.parse(Path(tangora.__file__).read_text(encoding="utf-8"))
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    names = {alias.name for node in checked.body for alias in node.names}
    assert names == set(tangora.__all__)


def test_the_packages_are_modules_and_say_what_is_in_them():
    for name in PACKAGES:
        package = getattr(tangora, name)
        assert inspect.ismodule(package), name
        assert package.__name__ == f"tangora.{name}"
        for public in package.__all__:
            assert getattr(package, public) is not None, (name, public)


def test_names_stay_functions_after_their_modules_are_imported():
    import importlib
    import pkgutil

    for module in pkgutil.iter_modules(tangora.__path__):
        if not module.name.startswith("__"):
            importlib.import_module(f"tangora.{module.name}")
    for name in (
        "analyze",
        "evaluate",
        "export",
        "finetune",
        "fuse",
        "linearize",
        "load",
        "predict",
        "predictor",
        "run",
        "search",
    ):
        assert inspect.isfunction(getattr(tangora, name)), name


def test_the_signature_of_fuse():
    parameters = inspect.signature(tangora.fuse).parameters
    assert list(parameters)[:3] == ["adapters", "method", "weights"]
    assert parameters["method"].default == "task_arithmetic"
    assert parameters["space"].default == "delta"
    assert parameters["rank"].default is None
    assert parameters["space"].kind is inspect.Parameter.KEYWORD_ONLY


def test_the_signature_of_fuse_checkpoints():
    parameters = inspect.signature(tangora.fuse_checkpoints).parameters
    assert list(parameters)[:5] == ["base", "models", "out", "method", "weights"]
    assert parameters["method"].default == "task_arithmetic"
    assert parameters["overwrite"].default is False
    assert parameters["dtype"].kind is inspect.Parameter.KEYWORD_ONLY


def test_importing_is_light():
    probe = "import sys, tangora; assert not {'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0


def test_unknown_names_raise():
    with pytest.raises(AttributeError, match="tangora"):
        tangora.fuze  # noqa: B018


def test_linear_fusion_of_checkpoints_needs_no_torch(tmp_path):
    """Its import takes longer than a gigabyte of fusing."""
    import torch
    from safetensors.torch import save_file

    for name in ("base", "a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        save_file({"w": torch.ones(3, 2, dtype=torch.bfloat16)}, tmp_path / name / "model.safetensors")
    probe = """
import sys
from tangora.cli import app
app(["fuse", "base", "a", "b", "--full", "--out", "out", "--method", "average"], standalone_mode=False)
assert not {"torch", "transformers", "peft"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
