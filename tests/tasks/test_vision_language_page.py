"""The blocks of docs/vision-language.md run, in order, in a folder like the reader's."""

from __future__ import annotations

import re
from pathlib import Path

import tiny

PAGE = (Path(__file__).parents[2] / "docs" / "vision-language.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_journey_from_images_to_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.llama(tmp_path / "llama")
    tiny.clip(tmp_path / "clip")
    tiny.images(tmp_path / "images")
    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    assert "colors" in capsys.readouterr().out
    assert len(BLOCKS) == 2
