"""The blocks of docs/systems/hypergrid.md run, in order, in a folder like the reader's; its recipe is one."""

from __future__ import annotations

import re
from pathlib import Path

import tiny
from tangora.config.hypergrid import HyperGridSettings
from tangora.config.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "systems" / "hypergrid.md").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.bert(tmp_path / "encoder")
    tiny.texts(tmp_path / "texts")
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 1
    assert (tmp_path / "exported" / "delta.safetensors").is_file()
    assert names["both"].metadata.train == "hypergrid"
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml").finetune_config("grids").settings.grid == (16, 16)


def test_the_page_lists_the_keys():
    listed = set(re.findall(r"^\| `(\w+)` \| ", PAGE.partition("## Keys")[2], re.MULTILINE))
    assert listed == HyperGridSettings.model_fields.keys() - {"training"}
