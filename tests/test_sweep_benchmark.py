"""The sweep's benchmark: its work on a tiny shape, and its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import sweep  # noqa: E402
import sweep_work  # noqa: E402

from tangora.tangent import make_columns  # noqa: E402

TINY = sweep_work.WORKS["tiny"]


def task(classes: int, fill: float, swept: float, difference: float = 1e-6) -> dict[str, object]:
    seconds = {"fill": fill, "stored": 0.0, "sweep": swept, "forward": [1.0, 1.0]}
    return {"classes": classes, **seconds, "difference": [difference, 0.0], "difference_of_change": [difference, 0.0]}


def results(**changes: object) -> dict[str, object]:
    machine = {"cpu": "Chip", "cores": 2, "load_before": [1.0], "load_after": [2.0]}
    versions = {"python": "3", "torch": "2", "transformers": "5"}
    settings = {"threads": 2, "batch_size": 4, "rows": 9, "rank": 2, "candidates": 100}
    found = {"date": "2025-01-02T03:04:05", "machine": machine, "versions": versions, "settings": settings}
    return {**found, "tasks": [task(2, 10.0, 1.0), task(3, 10.0, 3.0, 2e-6)], **changes}


def test_candidates_are_the_paper_s():
    found = sweep_work.candidates(sweep_work.WORKS["text7"])
    assert found.shape == (120 * 21, 7)
    assert found.min() == 0
    assert found.max() == 1
    sizes = (found > 0).sum(-1)
    assert sizes.max() == 7
    assert torch.equal(sizes.unique(), torch.tensor([0, 2, 3, 4, 5, 6, 7]))  # λ = 0 is a part of the grid
    assert int((found[20::21] == 1).sum(-1).eq(2).sum()) == 21


def test_accuracies_and_logits_are_those_of_forward_passes(monkeypatch):
    base = sweep_work.make_base(TINY)
    experts = sweep_work.make_experts(TINY, base)
    of = sweep_work.make_task(TINY, 2)
    columns = make_columns(base, of, "test", experts, batch_size=4)
    coefficients = sweep_work.candidates(TINY)
    whole = sweep_work.accuracies(columns, coefficients)
    monkeypatch.setattr(sweep_work, "CHUNK", 1)  # one candidate at a time
    assert torch.equal(sweep_work.accuracies(columns, coefficients), whole)
    labels = torch.tensor(of.splits["test"].targets)
    for index in (3, 7, 15):
        logits = sweep_work.forward_logits(base, of, experts, coefficients[index].tolist(), batch_size=4)
        torch.testing.assert_close(columns.logits(coefficients[index]), logits, rtol=1e-4, atol=1e-5)
        assert float((logits.argmax(-1) == labels).float().mean()) == pytest.approx(float(whole[index]))
    assert float((logits - columns.origin).norm() / logits.norm()) > 1e-2  # the experts have a say


def test_table_sums_and_says_what_was_not_met():
    lines = sweep.table(results()).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert rows[2] == "| 2 | 10 | 0 | 1 | 1 | 1e-06 |"
    assert rows[-1] == "| **all** | 20 | 0 | 4 | 2 | 2e-06 |"
    goals = [line for line in lines if line.startswith("- ")]
    assert [goal.rpartition(": ")[2] for goal in goals] == [
        "1.200, met",
        "8.333, **not met**",
        "50.000, **not met**",
        "2e-06, met",
    ]
    assert "0.1 hours" in lines[-1]
    worse = sweep.table(results(tasks=[task(2, 10.0, 4.0, 2e-4)]))
    assert "1.400, **not met**" in worse
    assert "2e-04, **not met**" in worse


def test_a_sweep_from_end_to_end(tmp_path):
    document, result = tmp_path / "doc.md", tmp_path / "sweep-cpu.json"
    document.write_text("before\n{}\nold\n{}\n".format(*sweep.MARKS), encoding="utf-8")
    flags = ["--work", "tiny", "--threads", "1", "--batch-size", "4", "--result", str(result), "--docs", str(document)]
    sweep.main(flags)
    found = json.loads(result.read_text(encoding="utf-8"))
    assert [task["classes"] for task in found["tasks"]] == [2, 3, 5]
    assert found["settings"]["candidates"] == 4 * 4
    for measured in found["tasks"]:
        assert len(measured["forward"]) == 2
        assert min(measured["fill"], measured["stored"], measured["sweep"], *measured["forward"]) > 0
        assert max(measured["difference"]) < 1e-4
    once = document.read_text(encoding="utf-8")
    assert "old" not in once
    sweep.main(["--render", *flags])
    assert document.read_text(encoding="utf-8") == once


@pytest.mark.skipif(not sweep.RESULT.exists(), reason="not measured yet")
def test_the_committed_result_is_what_the_document_shows(tmp_path):
    document = tmp_path / "benchmarks.md"
    document.write_text(sweep.DOCS.read_text(encoding="utf-8"), encoding="utf-8")
    sweep.main(["--render", "--docs", str(document)])
    assert document.read_text(encoding="utf-8") == sweep.DOCS.read_text(encoding="utf-8")
