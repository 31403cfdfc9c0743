"""Every row of docs/peers.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_the_page_names_tests_that_exist() -> None:
    page = (HERE.parents[1] / "docs" / "peers.md").read_text(encoding="utf-8")
    there = re.findall(r"^def (test_\w+)", "".join(p.read_text(encoding="utf-8") for p in HERE.glob("test_*.py")), re.M)
    named = re.findall(r"`(test_\w+)` \|$", page, re.M)
    assert len(named) > 20
    assert not [name for name in named if not any(name in test for test in there)]
