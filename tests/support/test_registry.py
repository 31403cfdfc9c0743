"""Registries of members by name: our own by file, entry points, members of one process."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from typing import Protocol, runtime_checkable

import pytest

from tangora.errors import PluginError
from tangora.support.registry import Registry


@runtime_checkable
class Greeter(Protocol):
    """Says hello."""

    name: str

    def greet(self, who: str) -> str:
        """Return a greeting."""


class Polite:
    name = "polite"

    def greet(self, who):
        return f"Good day, {who}"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    package = tmp_path / "greeters"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_helper.py").write_text("raise RuntimeError")
    text = "class G:\n    name = 'very-kind'\n    def greet(self, who):\n        return who\nGREETER = G()\n"
    (package / "very_kind.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Registry("greeter", "greeters", "GREETER", f"{__name__}:Greeter", "test.greeters")
    for name in [n for n in sys.modules if n.split(".")[0] == "greeters"]:
        del sys.modules[name]


def entry(monkeypatch, name, value):
    found = metadata.EntryPoint(name, value, "test.greeters")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [found] if group == "test.greeters" else [])


def test_files_are_members_and_listing_imports_nothing(registry):
    assert list(registry) == ["very-kind"]
    assert "very-kind" in registry
    assert "greeters.very_kind" not in sys.modules
    assert registry.get("very-kind").greet("you") == "you"
    assert registry.get("very-kind") is registry.get("very-kind")


def test_an_unknown_name_is_refused_with_the_nearest(registry):
    with pytest.raises(PluginError, match=r"no such greeter, got 'very-kin'. Did you mean 'very-kind'"):
        registry.get("very-kin")


def test_a_member_of_this_process(registry):
    registry.register("polite", Polite())
    assert registry.get("polite").greet("Ada") == "Good day, Ada"
    assert list(registry) == ["polite", "very-kind"]
    registry.unregister("polite")
    assert "polite" not in registry


def test_our_names_are_not_given_away(registry):
    with pytest.raises(PluginError, match="taken by a greeter of Tangora"):
        registry.register("very-kind", Polite())


def test_what_lacks_a_part_of_the_contract_is_refused(registry):
    with pytest.raises(PluginError, match="lacks greet, name"):
        registry.register("mute", object())


def test_entry_points(registry, monkeypatch):
    entry(monkeypatch, "guest", f"{__name__}:Polite")
    assert list(registry) == ["guest", "very-kind"]
    assert registry.get("guest").name == "polite"


def test_a_broken_entry_point_names_its_package_and_stops_no_other(registry, monkeypatch):
    entry(monkeypatch, "guest", "no_such_module:THING")
    assert registry.get("very-kind").name == "very-kind"
    with pytest.raises(PluginError, match=r"'guest' cannot be loaded \(ModuleNotFoundError.*no_such_module:THING"):
        registry.get("guest")


def test_an_entry_point_under_our_name_is_refused(registry, monkeypatch):
    entry(monkeypatch, "very-kind", f"{__name__}:Polite")
    with pytest.raises(PluginError, match="two of kind greeter have one name"):
        registry.get("very-kind")


def test_the_seams_list_their_names_without_torch():
    probe = (
        "import sys; from tangora.support import seams; [list(getattr(seams, name)) for name in seams.__all__]; "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", probe]).returncode == 0
