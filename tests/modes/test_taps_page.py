"""The blocks of docs/systems/taps.md run, in order, in a folder like the reader's; its recipe is one."""

from __future__ import annotations

import re
from pathlib import Path

import tiny
from tangora.config.gated import GatedAdapterSettings, GatedJointSettings, GatedWeightSettings
from tangora.config.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "systems" / "taps.md").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.bert(tmp_path / "encoder")
    tiny.texts(tmp_path / "texts")
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 1
    assert "layers are closed" in capsys.readouterr().out
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    loaded = load_recipe(tmp_path / "recipe.yaml")
    assert [loaded.finetune_config(mode).settings.penalty for mode in ("taps", "whole")] == [0.5, 0.5]


def test_the_page_lists_the_keys():
    listed = set(re.findall(r"^\| `(\w+)` \| ", PAGE.partition("## Keys")[2], re.MULTILINE))
    fields = {*GatedAdapterSettings.model_fields, *GatedWeightSettings.model_fields, *GatedJointSettings.model_fields}
    assert listed == fields - {"lora", "training"}
