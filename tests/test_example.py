"""The example of negation and analogy runs, on a model of random weights and a few steps."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import tangora

ROOT = Path(__file__).parent.parent


def example():
    spec = importlib.util.spec_from_file_location("negation_and_analogy", ROOT / "examples" / "negation_and_analogy.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_prints_its_tables_and_saves_what_it_made(tiny_clip, tmp_path, capsys, monkeypatch):
    module = example()
    monkeypatch.setattr(module, "GRID", [1.0, 2.0])
    module.main(["--model", str(tiny_clip), "--steps", "2", "--out", str(tmp_path)])
    output = capsys.readouterr().out
    rows = re.findall(r"^\| (base|the expert|base - [\d.]+ digits|a|b|a \+ b|a \+ b − c) \|(.*)\|$", output, re.M)
    assert len(rows) == 3 + 5
    assert all(0 <= float(cell) <= 1 for _, cells in rows[:3] for cell in cells.split("|"))
    weight = float(re.search(r"base - ([\d.]+) digits", output)[1])
    forget = tangora.load(tmp_path / "without-digits").metadata.fused
    assert forget.weights == [-weight]
    noisy = tangora.load(tmp_path / "noisy-odd").metadata.fused
    assert [parent.task for parent in noisy.parents] == ["odd", "noisy-even", "even"]
    assert noisy.weights[0] == noisy.weights[1] == -noisy.weights[2]


def test_the_page_shows_what_the_example_prints():
    """The tables of the page have the rows and columns of the example's; their numbers are from one run."""
    page = (ROOT / "docs" / "negation-and-analogy.md").read_text(encoding="utf-8")
    module = example()
    assert f"| test accuracy | {' | '.join([module.FORGOTTEN, *module.CONTROLS])} |" in page
    for label in ("base", "the expert", "a", "b", "a + b", "a + b − c"):
        assert re.search(rf"^\| {re.escape(label)} \|( [–\d.]+ \|)+$", page, re.M), label
