"""The examples in all docstrings of the package run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

import tangora

ROOT = Path(tangora.__file__).parent
SHOWN = [p for p in sorted(ROOT.rglob("*.py")) if p.name != "__main__.py" and ">>> " in p.read_text(encoding="utf-8")]


def name_of(path: Path) -> str:
    return ".".join(("tangora", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("name", map(name_of, SHOWN))
def test_examples(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
    assert found.attempted
