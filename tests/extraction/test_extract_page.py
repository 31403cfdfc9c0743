"""The blocks of docs/extract.md run, in order, in a folder like the reader's."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import tiny
from tangora.adapters.adapter import load
from workshop import done

PAGE = (Path(__file__).parents[2] / "docs" / "extract.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
(SHOWN,) = re.findall(r"\n```\n(extracted.*?)```", PAGE, re.DOTALL)


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.llama(tmp_path / "base")
    tiny.tuned(tmp_path / "base", tmp_path / "tuned")
    assert (len(BLOCKS), len(LINES)) == (1, 5)
    printed = {}
    for line in LINES:
        program, *arguments = shlex.split(line.removeprefix("$ "))
        assert program == "tangora"
        printed[line] = done(*arguments).output
    for line in SHOWN.splitlines():  # its numbers are those of one machine
        words = re.sub(r"\d[\d.e-]*", "#", line)
        assert words in re.sub(r"\d[\d.e-]*", "#", printed[LINES[0]].replace("\n", " ")), line
    names: dict = {}
    exec(BLOCKS[0], names)
    assert names["info"].error == load("adapter").metadata.extracted.error
