"""The blocks of docs/large-models.md run, in order, in a folder like the reader's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "large-models.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_adapters_of_bases_in_fewer_bytes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.llama(tmp_path / "llama")
    tiny.sums(tmp_path / "sums")
    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    assert len(BLOCKS) == 2
    assert "Scores(test, sums" in capsys.readouterr().out
    for folder, weights in (("sums", "bfloat16"), ("sums-8bit", "8bit and bfloat16")):
        recorded = json.loads((tmp_path / "experts" / folder / "tangora.json").read_text(encoding="utf-8"))
        assert recorded["base"]["weights"] == weights
