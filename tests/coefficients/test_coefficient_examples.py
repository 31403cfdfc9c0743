"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib

import pytest


@pytest.mark.parametrize("name", ["descend", "found", "grid", "linear", "lorahub", "rows", "solve"])
def test_examples(name):
    found = doctest.testmod(importlib.import_module(f"tangora.coefficients.{name}"))
    assert found.failed == 0
    assert found.attempted
