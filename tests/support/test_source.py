"""Digests of code: what changes them, and what does not."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from tangora.methods import get
from tangora.support import source
from tangora.support.source import source_digest

CODE = '''"""A plug-in."""
from tangora.methods import fusion_method


def mine(deltas, *, weights):
    """Sum."""
    return (deltas * weights).sum(0)  # all of them
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Write the plug-in's source and return its digest."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(text: str) -> str:
        (tmp_path / "a_plugin.py").write_text(text)
        for cached in (source._read, source._file, source._closure):
            cached.cache_clear()
        sys.modules.pop("a_plugin", None)
        importlib.invalidate_caches()
        return source_digest(importlib.import_module("a_plugin").mine)

    yield write
    sys.modules.pop("a_plugin", None)


def test_code_counts_and_prose_does_not(plugin):
    before = plugin(CODE)
    assert plugin(CODE.replace("Sum.", "Return the sum.").replace("all of them", "every one")) == before
    assert plugin(CODE.replace("\n\n\n", "\n\n\n\n")) == before
    assert plugin(CODE.replace(".sum(0)", ".mean(0)")) != before


def test_what_a_module_imports_counts():
    ties = source._closure("tangora.methods.ties")
    assert {"tangora.methods.ties", "tangora.methods._sums"} <= ties
    assert not any(name.startswith("tangora.runs") for name in ties)


def test_two_methods_differ_and_an_instance_is_its_class():
    assert source_digest(get("ties").function) != source_digest(get("average").function)
    assert source_digest(get("ties").function) == source_digest(get("ties_per_tensor").function)  # one module
    assert source_digest(get("ties")) == source_digest(type(get("ties")))


def test_packages_can_be_left_out():
    whole = source_digest(get("ties").function)
    assert source_digest(get("ties").function, without=["tangora.methods"]) != whole


def test_nothing_is_imported_for_a_digest():
    code = "from tangora.support.source import _closure as c; import sys; c('tangora.modes.finetuning')"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'transformers' not in sys.modules"], check=True)
