"""The blocks of docs/language-models.md run, in order, in a folder like the reader's."""

from __future__ import annotations

import re
from pathlib import Path

import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "language-models.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_journey_from_prompts_to_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.llama(tmp_path / "llama")
    for name in ("sums", "more"):
        tiny.sums(tmp_path / name)
    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    printed = capsys.readouterr().out
    assert "Scores(test, sums" in printed
    assert len(names["polished"].updates) > 0
    assert (tmp_path / "fused" / "adapter_model.safetensors").is_file()
    assert len(BLOCKS) == 2
