"""The blocks of docs/systems/dyadic.md and routing.md run in a folder like the reader's; their recipes are valid."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import tiny
from tangora.config.dyadic import DyadicSettings
from tangora.config.recipe import load_recipe
from tangora.runs.checks import check_methods
from tangora.support.seams import ROUTERS
from workshop import done as command

DOCS = Path(__file__).parents[2] / "docs" / "systems"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    tiny.bert(folder / "encoder")
    tiny.texts(folder / "texts")
    return folder


@pytest.mark.parametrize("name", ["dyadic", "routing"])
def test_the_page_runs(name, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    page = (DOCS / f"{name}.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, f"docs/systems/{name}.md", "exec"), {})
    assert "Scores(test, colors" in capsys.readouterr().out
    (place / f"{name}.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    check_methods(load_recipe(place / f"{name}.yaml"))
    for line in re.findall(r"^\$ tangora (.*)$", page, re.MULTILINE):
        arguments = [part.strip('"') for part in re.findall(r'"[^"]*"|\S+', line)]
        command(*(part.replace("routed", "routed2") if part == "routed" else part for part in arguments))


def test_the_tables_of_keys_are_complete():
    page = (DOCS / "dyadic.md").read_text(encoding="utf-8").partition("## Keys")[2]
    assert set(re.findall(r"^\| `(\w+)` \| ", page, re.MULTILINE)) >= set(DyadicSettings.model_fields) - {"training"}
    page = (DOCS / "routing.md").read_text(encoding="utf-8").partition("## Settings")[2].partition("##")[0]
    for name in ("arrow", "smile"):
        for setting in set(ROUTERS.get(name).settings.model_fields) - {"name"}:
            assert f"`{setting}`" in page, (name, setting)
