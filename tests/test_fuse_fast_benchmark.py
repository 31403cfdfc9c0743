"""The benchmark of merges with and without kernels: its pure parts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "benchmarks"))

import fuse_fast as benchmark  # noqa: E402

MIB = 2**20


def samples(*seconds):
    return [{"seconds": s, "cpu_seconds": 2 * s, "peak": 100 * MIB} for s in seconds]


def results():
    return {
        "date": "2025-01-02T03:04:05", "parameters": 10**8, "rounds": 3, "versions": {"numba": "1"},
        "machine": {"cpu": "Chip", "cores": 2, "load_before": [1], "load_after": [2]},
        "bandwidth": [{"read": 1e9, "write": 2e8}] * 3,
        "samples": {"ties_per_tensor": {"without": samples(8.0, 90.0, 30.0), "with": samples(4.0, 30.0, 10.0)}},
    }  # fmt: skip


def test_ratios_are_formed_within_rounds():
    # the floor: 1 GB read at 1 GB/s and 0.2 GB written at 0.2 GB/s
    rows = [line for line in benchmark.section(results(), {}).splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2].endswith("| 30.0 | 60.0 | 100 | – | – | 7% |")
    assert rows[3].endswith("| 10.0 | 20.0 | 100 | 3.00 (2.00 – 3.00) | 3.00 (2.00 – 3.00) | 20% |")


def test_the_ratio_to_mergekit_is_said_to_be_derived():
    peers = {"ties_per_tensor/tangora": samples(2.0), "ties_per_tensor/mergekit": samples(10.0)}
    floor, times = benchmark.goals(results(), peers)
    assert floor == "- TIES, trimmed per tensor: at least 30% of the floor: 20%, **not met**"
    assert times.endswith("at least 15 times mergekit's speed, derived from the two runs: 5.0 · 3.0 = 15.0, met")


def test_the_document_keeps_what_is_around_the_table(tmp_path):
    document, result = tmp_path / "b.md", tmp_path / "r.json"
    result.write_text(json.dumps(results()))
    arguments = ["--render", "--docs", str(document), "--result", str(result)]
    document.write_text(f"above\n{benchmark.BEGIN}\nold\n{benchmark.END}\nbelow\n")
    benchmark.main(arguments)
    text = document.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "old" not in text
    document.write_text("nothing")
    with pytest.raises(SystemExit, match="need <!-- fuse_fast:begin -->"):
        benchmark.main(arguments)
    assert document.read_text() == "nothing"
