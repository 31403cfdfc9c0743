"""The generator of the site's pages, which is not a part of the package."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[2] / "docs" / "_code"


@pytest.fixture(scope="session")
def generated() -> dict[str, str]:
    """Path -> text of every page that comes from the code."""
    sys.path.insert(0, str(BUILD))
    try:
        import generate

        return dict(generate.pages())
    finally:
        sys.path.remove(str(BUILD))
