"""The blocks of docs/dense.md run, in order, in a folder like the reader's."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from tangora.tasks.dense.problems import Problem
from tangora.tasks.dense.readout import DenseReadout

PAGE = (Path(__file__).parents[2] / "docs" / "dense.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_journey_of_the_page(tmp_path, monkeypatch, tiny_swin, scene_data, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_swin, "swin")
    shutil.copytree(scene_data, "scenes")
    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    assert "(16, 16) uint8" in capsys.readouterr().out


def test_the_size_of_a_decoder_is_the_formula_of_the_page():
    channels, width, outputs = (96, 192, 384, 768), 64, 2
    stages = [(c, 56 >> i, 56 >> i) for i, c in enumerate(channels)]
    problem = Problem(outputs, lambda logits, _: logits, lambda logits: logits)
    readout = DenseReadout(problem, stages, (224, 224), width, 4, "key")
    count = sum(p.numel() for p in readout.parameters())
    assert count == sum(2 * c + (c + 1) * width for c in channels) + (width + 1) * outputs
    assert f"{count:,} for Swin-T" in " ".join(PAGE.split())
