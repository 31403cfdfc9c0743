from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from tangora import report
from tangora.report import tables
from tangora.report.data import read_run
from tangora.report.html import duration, facts
from tangora.report.summary import Summary
from tangora.report.wide import Column, Wide


@pytest.fixture(scope="module")
def summary(run):
    return Summary(read_run(run))


def printed(run, width=100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(report.terminal(run))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_table_fits_and_holds_every_number(run, summary, width):
    text = printed(run, width)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= width
    assert "…" not in text
    assert "oracle" not in text.lower()
    starts = [next(i for i, line in enumerate(lines) if line.startswith(f"{m}: ")) for m in ("full", "LoRA", "L-LoRA")]
    for mode, start, stop in zip(("full", "lora", "l-lora"), starts, [*starts[1:], None], strict=True):
        part = "\n".join(lines[start:stop])
        for key in (key for key in summary.shown() if key.mode == mode):
            rows = summary.fused_scores(key, summary.largest)
            assert len(rows) == 7
            assert all(f"{row.score:.3f}  {100 * row.normalized:.0f}%" in part for row in rows.values())
            assert key.name in part
    wide = [line for line in lines if line.startswith("full: ")]
    assert (len(wide) == 1) == (width == 200)


def test_chosen_coefficients_stand_beside_the_method(run):
    assert re.search(r"task arithmetic +0\.\d{3} +\d+% +λ 0\.3 ", printed(run))


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ([], ""),
        ([""], ""),
        (["chosen"], "chosen"),
        (['{"weights": [0.25, -0.5]}'], "0.25 -0.5"),
        (['{"weights": [1.0], "parameters": {"density": 0.5}}'] * 2, "λ 1, density 0.5"),
        (['{"weights": [1.0]}', '{"weights": [0.5]}'], "differ by subset"),
    ],
)
def test_coefficients_for_people(written, text):
    assert tables.coefficients_text(written) == text


def test_the_terminal_table_takes_names_literally(hostile):
    text = printed(hostile, 200)
    assert "<img src=" in text
    assert "$x_1^2$" in text


def test_no_column_and_no_row_is_dropped_however_narrow():
    names = [f"task_{i}" for i in range(12)]
    wide = Wide(
        "[b]t",
        Column("method", ["a " * 30, "[red]b"], numbers=False),
        [Column(name, [f"1.{i:02}", f"2.{i:02}"], most=5) for i, name in enumerate(names)],
    )
    for width in (20, 33, 80, 300):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        console.print(wide)
        text = console.file.getvalue()
        assert max(len(line) for line in text.splitlines()) <= width
        for i in range(12):
            assert f"1.{i:02}" in text
            assert f"2.{i:02}" in text
        assert "[red]b" in text
        assert text.count("task_") == 12


def test_the_overview_puts_experts_beside_fusions(summary):
    table = tables.overview(summary)
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert [row[1] for row in table.rows[:4]] == ["zero-shot"] + ["experts, one per task"] * 3
    assert table.rows[1][3] == f"{sum(r.score for r in summary.experts('full').values()) / 7:.3f}"
    assert table.marked
    for index, row in enumerate(table.rows):
        assert (index in table.marked) == (row[2] == "† test (oracle)")


def test_by_size_has_a_column_group_per_size(summary):
    table = tables.by_size(summary)
    assert [c for c in table.columns if c.endswith("score")] == ["2: score", "3: score", "7: score"]
    key, row = next(iter(summary.fused)), table.rows[0]
    assert row[-1] == f"{summary.by_size(key)[7].all_tasks:.3f}"


def test_the_csv_table_is_the_csv(run):
    table = tables.csv_table(run / "scores.csv")
    lines = (run / "scores.csv").read_text().splitlines()
    assert ",".join(table.columns) == lines[0]
    assert len(table.rows) == len(lines) - 1
    assert all("oracle" in table.rows[i] for i in table.marked)


def test_experts_come_in_the_runs_order(summary):
    rows = tables.training(summary).rows
    assert [tuple(r[:2]) for r in rows[:2]] == [("full", "sst2"), ("full", "trec6")]
    assert rows[-1][2:4] == ["442,368", "1.9\u00a0%"]


def test_facts_are_grouped():
    info = {"seed": 3, "versions": {"torch": "2"}, "seconds": {"train": 75.0}, "tasks": {"a": {"train": 1, "test": 2}}}
    assert facts(info) == {
        "run": [("seed", "3")],
        "versions": [("torch", "2")],
        "wall time": [("train", "1 min 15 s")],
        "rows": [("a", "train 1, test 2")],
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (3725.4, "1 h 2 min 5 s")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_analyses_have_a_row_per_mode(summary):
    table = tables.analyses(summary)
    assert [row[0] for row in table.rows] == ["full", "LoRA", "L-LoRA"]
    ours = dict(zip(table.columns, table.rows[1], strict=True))
    assert ours["mean ξ on [0, 1]²"] == "0.400"
    assert ours["linearity gap"] == "0.500"  # at a = 1
    assert dict(zip(table.columns, table.rows[2], strict=True))["common inputs"] == "1.000"
