"""Bars: of one width whatever the labels are, and one for the whole run."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from tangora.cli.bars import Bars
from tangora.progress import Overall

BAR = re.compile("[━╸╺]+")


def drawn(work, width):
    """The last lines that some work leaves on a terminal of that width."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, legacy_windows=False, _environ={})
    with Bars(console) as bars:
        work(bars)
    console.file.seek(0)
    last = console.file.read().split("\r")[-1]
    return [line for line in re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", last).split("\n") if line.strip()]


def run(bars, part="lora · one", detail="loss 0.5"):
    bars.overall(Overall(0.0, None, 0, 0, "prepare"))
    bars.overall(Overall(0.25, 3700.0, 30, 120, "fine-tune"))
    bars.begin(part, 80)
    bars.update(40, detail)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_labels_do_not_move_bars(width):
    lines = [
        *drawn(run, width),
        *drawn(lambda bars: run(bars, "fuse · l-lora · delta · digits+photos+faces+textures", "long " * 30), width),
        *drawn(lambda bars: bars.begin("x", 0), width),
    ]
    assert len(lines) == 5
    assert all(len(line) <= width for line in lines)
    places = {BAR.search(line).span() for line in lines}
    assert len(places) == 1


def test_a_run_has_one_bar_with_its_stage_and_the_time_that_is_left():
    whole, part = drawn(run, 80)
    assert whole.startswith("run · fine-tune ")
    assert "25%" in whole
    assert whole.rstrip().endswith("about 1 h 02 min left · job 30/120")
    assert part.startswith("lora · one ")
    assert part.rstrip().endswith("40/80 · loss 0.5")


def test_before_the_jobs_are_known_the_bar_says_so():
    (whole,) = drawn(lambda bars: bars.overall(Overall(0.0, None, 0, 0, "prepare")), 80)
    assert whole.startswith("run · prepare ")
    assert whole.rstrip().endswith("estimating")


def test_a_finished_run_has_no_time_left():
    (whole,) = drawn(lambda bars: bars.overall(Overall(1.0, 0.0, 4, 4, "report")), 80)
    assert whole.rstrip().endswith("job 4/4")
    assert "left" not in whole


def test_work_of_one_part_says_how_long_it_takes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tangora.cli.bars.time.perf_counter", lambda: now[0])

    def work(bars):
        bars.begin("score on test", 4)
        now[0] += 30
        bars.update(1)

    (line,) = drawn(work, 80)
    assert line.rstrip().endswith("about 2 min left · 1/4")


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": "xterm-color", "JPY_PARENT_PID": "7"}])
def test_nothing_is_drawn_where_lines_stay(environment, capsys, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    console = Console(file=io.StringIO(), force_terminal=True, legacy_windows=False, _environ=environment)
    with Bars(console) as bars:
        run(bars)
        bars.end()
    assert console.file.getvalue() == ""
    assert "lora · one: done in" in capsys.readouterr().err
