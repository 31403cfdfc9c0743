"""The examples in all docstrings of the package run, some of them in a folder like a user's (`workshop`)."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
from pathlib import Path

import pytest

import tangora
from tangora.methods import _registry

ROOT = Path(tangora.__file__).parent
SHOWN = [p for p in sorted(ROOT.rglob("*.py")) if p.name != "__main__.py" and ">>> " in p.read_text(encoding="utf-8")]
FILES = re.compile(r'"(encoder|tuned|recipe\.yaml|run|(adapters|colors|models|run)/[\w./-]+)"')


def name_of(path: Path) -> str:
    return ".".join(("tangora", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


@pytest.mark.parametrize("name", map(name_of, SHOWN))
def test_examples(name, request, monkeypatch):
    module = importlib.import_module(name)
    known = dict(tangora.methods())
    monkeypatch.setattr(_registry, "_METHODS", known)  # a method of an example is gone after it
    examples = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module) if test.examples]
    if any(FILES.search(example.source) for test in examples for example in test.examples):
        monkeypatch.chdir(request.getfixturevalue("workshop"))
    found = doctest.testmod(module)
    assert found.failed == 0
    assert found.attempted


@pytest.mark.parametrize("name", tangora.__all__)
def test_every_public_name_shows_how_it_is_used(name):
    text = inspect.getdoc(getattr(tangora, name)) or ""
    assert ">>> " in text, f"tangora.{name} has no example that runs"
