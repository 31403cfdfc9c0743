"""The blocks of docs/systems/pha.md run, in order, in a folder like the reader's; its recipe is valid."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import tiny
from tangora.adapters.adapter import load
from tangora.config.pha import PrototypeSettings
from tangora.config.recipe import load_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "systems" / "pha.md").read_text(encoding="utf-8")


def test_the_journey_from_two_tasks_to_a_third(tmp_path, monkeypatch, capsys, tiny_t5):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_t5, "t5")
    for name in ("topic", "tone", "mood"):
        tiny.texts(tmp_path / name)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out
    assert "Scores(test, topic" in printed
    assert re.search("started from (topic|tone)", printed)
    assert load("trained/mood").metadata.modules["joint"]["tasks"] == ["topic", "tone", "mood"]


def test_the_recipe_is_valid(tmp_path):
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe)
    config = load_recipe(tmp_path / "recipe.yaml").finetune_config("pha")
    assert config.train == "pha"
    assert config.settings.sampling.mixed


def test_the_table_of_keys_is_complete():
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE))))
    assert listed == set(PrototypeSettings.model_fields) - {"training"}
