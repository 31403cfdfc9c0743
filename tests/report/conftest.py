from __future__ import annotations

from pathlib import Path

import pytest
from chromium import CHROMIUM
from synthetic import make_run

from tangora import report

HOSTILE = ["<img src=x onerror=alert(1)>", "$x_1^2$", "a&amp;b\"'|", "${{7*7}}"]


@pytest.fixture(scope="module", autouse=True)
def _figures() -> None:
    """Draw them in every module."""


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """A whole run, its report built once for every test."""
    folder = make_run(tmp_path_factory.mktemp("run"))
    report.build(folder)
    return folder


@pytest.fixture(scope="session")
def hostile(tmp_path_factory) -> Path:
    """A run whose names try to be markup."""
    title = "<script>alert('title')</script>"
    folder = make_run(tmp_path_factory.mktemp("hostile"), HOSTILE, with_analyses=False, title=title)
    report.build(folder)
    return folder


@pytest.fixture(scope="session")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()
