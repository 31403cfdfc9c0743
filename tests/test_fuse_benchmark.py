"""The benchmark of full checkpoints: its pure parts, and one sample of a tiny work."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "benchmarks"))

import fuse as benchmark  # noqa: E402
import fuse_table  # noqa: E402
import fuse_work  # noqa: E402

from folders import family  # noqa: E402

MIB = 2**20


def samples(*seconds, peak=100):
    return [{"seconds": s, "cpu_seconds": 2 * s, "peak": peak * MIB} for s in seconds]


def results():
    taken = {
        "task_arithmetic/tangora": samples(1.0, 10.0, 100.0),
        "task_arithmetic/mergekit": samples(5.0, 50.0, 500.0, peak=1000),
        "ties_per_tensor/tangora": samples(2.0, 2.0, 2.0),
        "ties_per_tensor/mergekit": samples(10.0, 10.0, 10.0, peak=400),
        "ties/tangora": samples(3.5, 3.5, 3.5),
    }
    row = {key: samples(1.0)[0] for key in ("task_arithmetic", "ties_per_tensor")}
    return {
        "date": "2025-01-02T03:04:05", "device": "cpu", "parameters": 10**8, "rounds": 3, "versions": {"torch": "2"},
        "machine": {"cpu": "Chip", "cores": 2, "memory": 2**33, "os": "Linux", "load_before": [1], "load_after": [2]},
        "bandwidth": [{"read": 1e9, "write": 2e8}] * 3, "samples": taken,
        "growth": [{"layers": n, "parameters": n, "bytes": n * 10**9, **row} for n in (1, 2)],
    }  # fmt: skip


def test_ratios_are_formed_within_rounds():
    rows = fuse_table.table(results()).splitlines()
    assert len({row.count("|") for row in rows if row.startswith("|")}) == 1
    # the floor: 1 GB read at 1 GB/s and 0.2 GB written at 0.2 GB/s
    assert rows[2] == "| task arithmetic: **Tangora** | 10.0 | 20.0 | 100 | 5.0 | 0.10 | 20% |"
    assert rows[3] == "| task arithmetic: mergekit | 50.0 | 100.0 | 1000 | – | – | 4% |"


def test_goals_say_what_is_not_met():
    lines = fuse_table.goals(results())
    assert [line.endswith("**not met**") for line in lines] == [False, False, True, True, True, False]
    assert lines[0].endswith("5.00, met")


def test_the_document_keeps_what_is_around_the_table(tmp_path):
    document, path = tmp_path / "b.md", tmp_path / "fuse-cpu.json"
    path.write_text(json.dumps(results()))
    document.write_text(f"before {fuse_table.BEGIN} old {fuse_table.END} after")
    fuse_table.render([path], document, tmp_path / "figures")
    text = document.read_text()
    assert text.startswith("before ")
    assert text.endswith(" after")
    assert "old" not in text
    assert "| 2 | 2.00 | 1.0 | 100 | 1.0 | 100 |" in text
    assert (tmp_path / "figures" / "fuse-cpu-growth.png").stat().st_size > 1000
    document.write_text("no markers")
    with pytest.raises(ValueError, match="need"):
        fuse_table.render([path], document, tmp_path)


def test_the_work_is_of_the_size_that_is_told():
    import math

    assert round(sum(math.prod(shape) for _, shape in fuse_work.shapes(24)) / 1e6) == 468


@pytest.mark.slow
def test_a_sample_is_a_whole_process(tmp_path):
    family(tmp_path / "work", 4)
    for i in range(4):
        (tmp_path / "work" / f"m{i}").rename(tmp_path / "work" / f"ft{i}")
    options = argparse.Namespace(device="cpu", peers=tmp_path)
    for name in ("task_arithmetic/tangora", "ties/tangora"):
        sample = benchmark._sample(name, tmp_path / "work", tmp_path / "out", options)
        assert sample["seconds"] > 0.2
        assert sample["peak"] > 50 * MIB
        assert not (tmp_path / "out").exists()
    read = benchmark._bandwidth(tmp_path / "work", tmp_path / "bytes")
    assert read["read"] > 0 < read["write"]


@pytest.mark.slow
def test_a_contender_that_fails_stops_the_run(tmp_path):
    options = argparse.Namespace(device="cpu", peers=tmp_path)
    with pytest.raises(SystemExit, match="no such folder"):
        benchmark._sample("ties/tangora", tmp_path / "nowhere", tmp_path / "out", options)


def test_without_mergekit_it_says_so(tmp_path):
    with pytest.raises(SystemExit, match="make bench-peers"):
        benchmark.main(["--peers", str(tmp_path), "--results", str(tmp_path)])
