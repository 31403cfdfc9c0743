"""The examples in the methods' docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import tangora.methods
from tangora.methods import _registry

MODULES = [f"tangora.methods.{m.name}" for m in pkgutil.iter_modules(tangora.methods.__path__) if m.name != "__main__"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, monkeypatch) -> None:
    monkeypatch.setattr(
        _registry, "_METHODS", dict(tangora.methods.methods())
    )  # a method of an example is gone after it
    module = importlib.import_module(name)
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted or name.rpartition(".")[2].startswith("_")
