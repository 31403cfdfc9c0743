"""The benchmarks of what a step and a candidate cannot go below, on tiny shapes, and their tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import candidates  # noqa: E402
import executors  # noqa: E402
import step_floor  # noqa: E402
from step_models import SHAPES, make_batch  # noqa: E402

BENCHMARKS = [
    (step_floor, ["--shapes", "tiny-bert", "tiny-t5", "--rounds", "2"]),
    (candidates, ["--work", "tiny", "--rounds", "2", "--batch-size", "4"]),
]


@pytest.mark.parametrize(("benchmark", "flags"), BENCHMARKS, ids=lambda one: getattr(one, "__name__", ""))
def test_from_end_to_end(tmp_path, benchmark, flags):
    document, result = tmp_path / "doc.md", tmp_path / "result.json"
    document.write_text("before\n{}\nold\n{}\nafter\n".format(*benchmark.MARKS), encoding="utf-8")
    given = [*flags, "--threads", "1", "--result", str(result), "--docs", str(document)]
    benchmark.main(given)
    once = document.read_text(encoding="utf-8")
    assert "old" not in once
    rows = [line for line in once.splitlines() if line.startswith("|")]
    assert len(rows) == (4 if benchmark is step_floor else 8)
    assert len({row.count("|") for row in rows}) == 1
    benchmark.main(["--render", *given])
    assert document.read_text(encoding="utf-8") == once


@pytest.mark.parametrize(("shape", "count"), [("tiny-clip", 2), ("tiny-bert", 2), ("tiny-t5", 6), ("tiny-llama", 2)])
def test_the_floor_reaches_the_first_blocks(shape, count):
    """One offset for each adapted layer of a first block, and a gradient at each: nothing above them is left out."""
    model, offsets = step_floor.without_adapters(SHAPES[shape], 0)
    assert len(offsets) == count
    assert not any(parameter.requires_grad for parameter in model.parameters())
    model(**make_batch(SHAPES[shape], 0, "cpu"))["loss"].backward()
    assert all(float(offset.grad.abs().max()) > 0 for offset in offsets)


def test_candidates_in_one_pass_are_compared_before_they_are_timed(monkeypatch, tmp_path):
    monkeypatch.setattr(candidates, "TOLERANCE", 0.0)
    monkeypatch.setattr(candidates.Scorer, "difference", lambda self, count: 1e-3)
    with pytest.raises(SystemExit, match=r"differ from one by one: 1\.0e-03"):
        candidates.main(["--work", "tiny", "--threads", "1", "--result", str(tmp_path / "x.json")])


def test_shares_are_formed_within_a_round():
    seconds = {
        "pass": [1.0, 2.0],
        "through": [3.0, 6.0],
        "lora": [4.0, 8.0],
        "l_lora": [4.0, 8.0],
        "tangent": [6.0, 12.0],
    }
    machine = {"cpu": "Chip", "cores": 2, "load_before": [1.0], "load_after": [2.0]}
    settings = {"threads": 2, "rounds": 2, "seed": 0}
    found = {"date": "2026-01-02T03:04:05", "machine": machine, "versions": {"torch": "2"}, "settings": settings}
    row = step_floor.table({**found, "shapes": {"x": {"title": "X", "seconds": seconds}}}).splitlines()[-1]
    assert [cell.split()[0] for cell in row.strip("| ").split(" | ")] == [
        "X",
        "0.750",
        "1.000",
        "1.000",
        "1.500",
        "0.250",
    ]


@pytest.mark.parametrize("benchmark", [step_floor, candidates, executors])
def test_the_committed_result_is_what_the_document_shows(tmp_path, benchmark):
    if not benchmark.RESULT.exists():
        pytest.skip("not measured yet")
    document = tmp_path / "benchmarks.md"
    document.write_text(benchmark.DOCS.read_text(encoding="utf-8"), encoding="utf-8")
    benchmark.main(["--render", "--docs", str(document)])
    assert document.read_text(encoding="utf-8") == benchmark.DOCS.read_text(encoding="utf-8")
