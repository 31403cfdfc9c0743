"""The blocks of docs/tables.md run, in a folder like the reader's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from paired_run import make_paired_run
from typer.testing import CliRunner

from tangora.cli import app

PAGE = (Path(__file__).parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\$ tangora (.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for seed, name in enumerate(("one", "two")):
        make_paired_run(tmp_path / "runs" / name, seed=seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_lines_run(folder):
    assert len(LINES) == 8
    for line in LINES:
        done = CliRunner().invoke(app, shlex.split(line))
        assert done.exit_code == 0, (line, done.output, done.exception)
        assert done.stdout
    assert r"\toprule" in (folder / "scores.tex").read_text()
    assert (folder / "differences.csv").read_text().startswith("mode,method,tasks fused,average,compared,difference")


def test_the_python_blocks_run(folder, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "docs/tables.md", "exec"), {})
    shown = capsys.readouterr().out
    assert "±" in shown
    assert re.search(r"lora ties [+-]0\.\d{3} p ", shown)
