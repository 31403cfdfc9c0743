"""The block of docs/systems/wemoe.md runs, in a folder like the reader's, and its table has all keys."""

from __future__ import annotations

import re
from pathlib import Path

import tiny
from tangora.routing.routers.e_wemoe import EWemoeSettings
from tangora.routing.routers.wemoe import WemoeSettings

PAGE = (Path(__file__).parents[2] / "docs" / "systems" / "wemoe.md").read_text(encoding="utf-8")


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny.bert(tmp_path / "encoder")
    tiny.texts(tmp_path / "texts")
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(block, {})
    assert "entropy {'one': 16, 'two': 16}" in capsys.readouterr().out
    assert (tmp_path / "routed" / "routed.safetensors").is_file()


def test_the_page_lists_the_keys_and_their_defaults():
    listed = dict(re.findall(r"^\| `(\w+)` \|\s+`?([^|`]*?)`?\s*\|", PAGE.partition("## Keys")[2], re.MULTILINE))
    fields = {**WemoeSettings.model_fields, **EWemoeSettings.model_fields}
    assert listed.keys() == fields.keys() - {"name"}
    for name, shown in listed.items():
        default = fields[name].default
        same = shown.strip() == ("" if default is None else str(default).lower())
        assert same or float(shown) == default, f"{name}: {shown} is not {default}"
