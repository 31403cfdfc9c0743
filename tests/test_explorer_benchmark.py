"""The explorer's benchmark: its table, and what it measures on a small page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))
sys.path.insert(0, str(ROOT / "tests" / "report"))

import explorer as benchmark  # noqa: E402
from chromium import CHROMIUM  # noqa: E402


def page(updates: list[float], size: int = 3_000_000) -> dict[str, object]:
    moves = {kind: {"updates": updates, "frames": [20.0]} for kind in ("one", "all")}
    return {"build": 1.0, "open": 0.5, "bytes": size, "moves": moves}


def results(**pages: dict[str, object]) -> dict[str, object]:
    machine = {"cpu": "Chip", "cores": 2, "load_before": [1.0], "load_after": [2.0]}
    header = {"date": "2025-01-02T03:04:05", "machine": machine, "versions": {"python": "3", "chromium": "100"}}
    return {**header, "settings": {"rows": 9, "moves": 4}, "pages": pages}


def test_the_table_says_what_was_not_met():
    lines = benchmark.table(results(text7=page([2.0, 4.0, 6.0]))).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2] == "| text7 | 3.0 | 1.0 | 0.5 | one slider | 4.0 | 5.8 | 6.0 | 20.0 |"
    assert [line.rpartition(": ")[2] for line in lines if line.startswith("- ")] == ["6, met", "3,000,000, met"]
    worse = benchmark.table(results(text7=page([2.0] * 2), broad=page([60.0] * 3, 16_000_000))).splitlines()
    assert [line.rpartition(": ")[2] for line in worse if line.startswith("- ")] == [
        "60, **not met**",
        "16,000,000, **not met**",
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_it_counts_every_move(tmp_path):
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    document, result = tmp_path / "doc.md", tmp_path / "explorer-cpu.json"
    document.write_text("before\n{}\nold\n{}\n".format(*benchmark.MARKS), encoding="utf-8")
    # a process of its own: Playwright starts once in a process, and other tests may have it open in this one
    call = "import sys, explorer; explorer.PAGES = {'small': 2}; explorer.main(sys.argv[1:])"
    options = ["--moves", "5", "--rows", "12", "--result", str(result), "--docs", str(document)]
    subprocess.run([sys.executable, "-c", call, *options], check=True, cwd=ROOT / "benchmarks")
    moves = json.loads(result.read_text(encoding="utf-8"))["pages"]["small"]["moves"]
    assert {kind: (len(m["updates"]), len(m["frames"])) for kind, m in moves.items()} == {"one": (5, 5), "all": (5, 5)}
    assert "| small |" in document.read_text(encoding="utf-8")
    assert "old" not in document.read_text(encoding="utf-8")
