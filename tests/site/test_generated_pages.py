"""Nothing is missing on the site: methods, members, commands, keys of recipes, errors, names of Python."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
import torch

import tangora
import tangora.testing
from tangora import errors
from tangora.cli.commands import LISTED, command
from tangora.config.reference import recipe_keys
from tangora.methods import methods
from tangora.support.seams import EXECUTORS, FAMILIES, FORMATS, METRICS, MODES, ROUTERS, SEARCHES, SPACES

BUILD = Path(__file__).parents[2] / "docs" / "_code"
NAV = (Path(__file__).parents[2] / "mkdocs.yml").read_text(encoding="utf-8")
PAGES = {
    "modes": MODES,
    "families": FAMILIES,
    "metrics": METRICS,
    "searches": SEARCHES,
    "formats": FORMATS,
    "spaces": SPACES,
    "executors": EXECUTORS,
}


def section(page: str, title: str) -> str:
    """The text of a page from a title to the next of its level."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[2]


@pytest.mark.parametrize("name", sorted(methods()))
def test_a_method_has_its_page(generated, name):
    page, method = generated[f"methods/{name}.md"], methods()[name]
    for said in (method.reference, f"--method {name}", f"pictures/{name}.png", "**When to choose it.**"):
        assert said in page
    for parameter, default in method.parameters.items():
        row = re.search(rf"^\| `{parameter}` \| `{re.escape(repr(default))}` \| (\w.*) \|$", page, re.MULTILINE)
        assert row, f"{parameter} is described"
    usage = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert usage
    assert f"method: {name}" in usage[1]


def test_a_method_has_its_scores(generated):
    row = re.search(r"^\| lora \| ties \| delta \|.* \| (\S+ / \S+) \| (\S+) \|$", _text7(), re.MULTILINE)
    assert row
    assert f"| [text7](../text7.md) | lora | `ties` | delta | {row[1]} | {row[2]} |" in generated["methods/ties.md"]
    assert "How it did" not in generated["methods/slerp.md"], "it fuses two"


def _text7():
    return (BUILD.parent / "text7.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(methods()))
def test_the_picture_shows_a_fusion_of_the_toy(name, monkeypatch):
    monkeypatch.syspath_prepend(BUILD)
    from pages.toys import fused

    result = fused(methods()[name])
    assert result.shape == (24, 24)
    assert torch.isfinite(result).all()
    assert result.norm() > 0


def test_a_picture_is_drawn(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(BUILD)
    from pages.pictures import draw

    draw(methods()["ties"], tmp_path / "ties.png")
    assert (tmp_path / "ties.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", sorted(PAGES))
def test_every_member_is_described(generated, kind):
    page = generated[f"reference/{kind}.md"]
    assert f"reference/{kind}.md" in NAV
    for name in PAGES[kind].own:
        assert section(page, name).strip(), f"{name} has a docstring"


def test_every_router_has_its_page(generated):
    for name in ROUTERS.own:
        page = generated[f"methods/{name}.md"]
        settings = ROUTERS.get(name).settings.model_fields.keys() - {"name"}
        assert all(f"| `{setting}` |" in page for setting in settings)


def test_every_command_with_every_option(generated):
    page = generated["reference/command-line.md"]
    for names in LISTED.values():
        for name in names:
            text = section(page, name)
            for one in command(name).built().params:
                shown = [f"`{one.metavar}`"] if one.param_type_name == "argument" else one.opts + one.secondary_opts
                if not one.hidden:
                    assert all(part in text for part in shown), (name, shown)
                    assert one.help, (name, shown)


def test_every_key_of_a_recipe(generated):
    page = generated["reference/recipe.md"]
    keys = recipe_keys()
    assert len(keys) > 100
    for key in keys:
        assert f"\n`{key.path}`\n" in page
        assert key.description, f"{key.path} is described"
    schema = json.loads(generated["reference/recipe.schema.json"])
    assert {"base", "tasks"} <= schema["properties"].keys()


def test_every_error_and_what_cures_it(generated):
    page = generated["reference/errors.md"]
    for name in errors.__all__:
        assert section(page, name).strip()
    assert len(re.findall(r"^\| ", page, re.MULTILINE)) > 300, "messages are found in the code"
    assert "density must be in" not in page or "Densities are fractions" in page


def test_every_public_name(generated):
    page = generated["reference/python.md"]
    assert all(f"tangora.{name}" in page for name in tangora.__all__)
    assert "## More" not in page, "a new name belongs to a group: docs/_code/pages/python.py"
    assert all(f"tangora.testing.{name}" in generated["reference/testing.md"] for name in tangora.testing.__all__)


def test_every_page_is_in_the_navigation(generated):
    docs = Path(__file__).parents[2] / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} | generated.keys()
    for page in pages:
        if page.endswith(".md") and not page.startswith("methods/"):
            assert re.search(rf"(: |- ){re.escape(page)}$", NAV, re.MULTILINE), page


def test_only_its_own_folder_is_replaced(tmp_path, monkeypatch, generated):
    monkeypatch.syspath_prepend(BUILD)
    import generate
    from pages import pictures

    monkeypatch.setattr(generate, "pages", lambda: iter([("a/b.md", "# b\n")]))
    monkeypatch.setattr(pictures, "draw", lambda method, path: None)
    monkeypatch.setattr(generate.tutorials, "pictures", lambda: iter([("c/d.png", b"drawn")]))
    made = tmp_path / "new folder"
    for _ in range(2):
        generate.write(made)
        assert sorted(path.name for path in made.rglob("*")) == [".generated", "a", "b.md", "c", "d.png"]
        (made / "a" / "old.md").touch()
    (tmp_path / "mine").write_text("mine")
    for taken in (tmp_path, tmp_path / "mine"):
        with pytest.raises(errors.OutputError, match="did not write"):
            generate.write(taken)
    assert (tmp_path / "mine").read_text() == "mine"


def test_docstrings_become_markdown(monkeypatch):
    monkeypatch.syspath_prepend(BUILD)
    from pages.prose import Docstring, marked

    text = Docstring.of(methods()["dare"].function)
    assert set(text.sections) >= {"Args", "Raises"}
    assert text.sections["Args"]["density"]
    assert marked("``a | b`` and <x>, *y*") == r"`a | b` and &lt;x>, \*y\*"
    assert "pages" in sys.modules
