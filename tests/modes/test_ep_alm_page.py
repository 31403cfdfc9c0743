"""The blocks of docs/systems/ep-alm.md run, in order, in a folder like the reader's; its recipe is one."""

from __future__ import annotations

import re
from pathlib import Path

import tiny
from tangora.config.ep_alm import EpAlmSettings
from tangora.config.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "systems" / "ep-alm.md").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.llama(tmp_path / "llama")
    tiny.clip(tmp_path / "clip")
    tiny.images(tmp_path / "images")
    names: dict = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, names)
    assert "paint" in capsys.readouterr().out
    assert names["fused"].metadata.modules == names["experts"][0].metadata.modules
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    settings = load_recipe(tmp_path / "recipe.yaml").finetune_config("ep-alm").settings
    assert settings.model_dump(exclude={"training"}) == EpAlmSettings().model_dump(exclude={"training"})


def test_the_page_lists_the_keys():
    listed = set(re.findall(r"^\| `(\w+)` \| ", PAGE.partition("## Keys")[2].partition("## Cost")[0], re.MULTILINE))
    assert listed == EpAlmSettings.model_fields.keys() - {"training"}
