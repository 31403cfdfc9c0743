"""The benchmark of growth: its table, its plans, and that the page has what the results file says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import scale  # noqa: E402
from step_table import replace_between  # noqa: E402


def test_a_row_has_the_share_of_the_ideal_and_the_drivers_time_per_job():
    case = {"workers": 4, "jobs": 40, "length": 0.5, "seconds": 10.0, "ideal": 5.0, "driver_cpu": 1.0, "peak": 2**27}
    assert (
        scale._row(case) == "| 4 | 40 | 0.5 s | 5.0 s | 10.0 s | 50% | 10.0 ms | 128 MiB |"
    )  # 100 jobs, 60 of them experts


def test_a_plan_of_twenty_tasks_has_a_job_for_eight_subsets():
    found = scale.planned(3)
    blocks = -(-found["subsets"] // scale.SUBSETS)
    assert found["subsets"] == 3 * 18 + 1  # 19 sizes, and one subset of 20
    # Experts and their scores, the base's, tables, fused adapters and the report.
    assert found["jobs"] == blocks + 2 * scale.TASKS + 4


@pytest.mark.skipif(not scale.RESULT.exists(), reason="not measured yet")
def test_the_page_has_the_table_of_the_results_file():
    text = scale.DOCS.read_text(encoding="utf-8")
    results = json.loads(scale.RESULT.read_text(encoding="utf-8"))
    assert replace_between(text, scale.table(results), *scale.MARKS) == text
