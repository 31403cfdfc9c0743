"""The extras of pyproject.toml, and what is said to those who lack one."""

from __future__ import annotations

import importlib.util

import pytest

from tangora.errors import MissingExtraError, TangoraError
from tangora.support import extras
from tangora.support.extras import require


@pytest.fixture
def without(monkeypatch):
    """Hide packages from `require`."""

    def hide(*names: str) -> None:
        def find(name: str) -> object:
            return None if name in names else importlib.util.find_spec(name)

        monkeypatch.setattr(extras, "find_spec", find)

    return hide


def test_what_is_installed_is_not_complained_about():
    require("train", "report", "vision", purpose="a test")


def test_the_error_has_the_command_that_installs_all_of_them(without):
    without("datasets", "matplotlib", "jinja2")
    message = (
        r"a run needs packages that are not installed, got 'datasets, jinja2, matplotlib'\. "
        r"Run: pip install 'tangora\[train,report\]'"
    )
    with pytest.raises(MissingExtraError, match=message):
        require("train", "vision", "report", purpose="a run")
    assert issubclass(MissingExtraError, TangoraError)


def test_a_hidden_package_is_missing(monkeypatch):
    def find(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(extras, "find_spec", find)
    with pytest.raises(MissingExtraError, match="sentencepiece"):
        require("text", purpose="a test")
