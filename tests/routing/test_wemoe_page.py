"""The block of docs/systems/wemoe.md runs, in a folder like the reader's, and its table has all keys."""

from __future__ import annotations

import re
from pathlib import Path

import tiny
from tangora.config.recipe import load_recipe
from tangora.routing.routers.e_wemoe import EWemoeSettings
from tangora.routing.routers.wemoe import WemoeSettings
from tangora.runs.checks import check_methods

PAGE = (Path(__file__).parents[2] / "docs" / "systems" / "wemoe.md").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.bert(tmp_path / "encoder")
    tiny.texts(tmp_path / "texts")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, {})
    assert "entropy {'one': 16, 'two': 16}" in capsys.readouterr().out
    assert (tmp_path / "routed" / "routed.safetensors").is_file()


def test_its_recipe_is_one(tmp_path):
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    loaded = load_recipe(tmp_path / "recipe.yaml")
    check_methods(loaded)
    chosen = {entry.method: entry.route for entry in loaded.fusion.methods if entry.route is not None}
    assert (chosen["wemoe"].depth, chosen["e-wemoe"].keep, chosen["dyadic-experts"].steps) == (1, 0.1, 200)


def test_the_page_lists_the_keys_and_their_defaults():
    listed = dict(re.findall(r"^\| `(\w+)` \|\s+`?([^|`]*?)`?\s*\|", PAGE.partition("## Keys")[2], re.MULTILINE))
    fields = {**WemoeSettings.model_fields, **EWemoeSettings.model_fields}
    assert listed.keys() == fields.keys() - {"name"}
    for name, shown in listed.items():
        default = fields[name].default
        same = shown.strip() == ("" if default is None else str(default).lower())
        assert same or float(shown) == default, f"{name}: {shown} is not {default}"
