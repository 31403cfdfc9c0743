"""The gallery: what it shows is whole, opens without a network, names no machine, and has the numbers of its page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tangora.config.recipe import load_recipe

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "gallery"
PAGE = (DOCS / "gallery.md").read_text(encoding="utf-8")
SHOWN = sorted(path.relative_to(DOCS).as_posix() for path in FOLDER.rglob("*.html"))
MACHINE = re.compile(r"/tmp\b|/root\b|/work\b|/home/|/Users/|/private/|site-packages|\b[A-Z]:\\\\")
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "wbr"}


class Reader(HTMLParser):
    """Checks that what is opened is closed, and keeps attributes and the rows of tables."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.text: list[str] = []

    def handle_startendtag(self, tag, attrs):  # of SVG: <path ... />
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> opens nowhere"
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data.replace("\xa0", " ")


def read(name):
    reader = Reader()
    reader.feed((DOCS / name).read_text(encoding="utf-8"))
    reader.close()
    return reader


def quoted(name):
    """The rows of the table that the page quotes of a report."""
    block = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", PAGE, re.DOTALL)
    assert block
    lines = [line.strip("| ") for line in block[1].splitlines() if line.startswith("|")]
    return [re.split(r"\s*\|\s*", line) for line in lines[:1] + lines[2:]]


@pytest.mark.parametrize("name", SHOWN)
def test_it_is_whole_and_linked_with_a_small_picture(name):
    page, path = read(name), DOCS / name
    assert page.open == []
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert path.stat().st_size < 2_000_000
    linked = re.search(rf"\[!\[[^\]]+\]\((gallery/[\w-]+\.png)\)\]\({re.escape(name)}\)", PAGE)
    assert linked, "a picture leads to it"
    assert (DOCS / linked[1]).stat().st_size <= 150_000


@pytest.mark.parametrize("name", SHOWN)
def test_it_names_no_machine_and_fetches_nothing(name):
    raw, page = (DOCS / name).read_text(encoding="utf-8"), read(name)
    assert not MACHINE.search(raw), MACHINE.search(raw)
    policy = [value for tag, _, value in page.attributes if tag == "meta" and value.startswith("default-src")]
    assert policy
    assert policy[0].startswith("default-src 'none'")
    for tag, name_of, value in page.attributes:
        if name_of in ("src", "href", "xlink:href") and not value.startswith(("#", "data:")):
            assert tag == "a", f"{tag} fetches {value}"
            assert value.startswith("https://") or ((DOCS / name).parent / value).is_file(), f"{value} is not there"


def test_all_of_the_gallery_is_reached():
    assert len(SHOWN) >= 2
    for path in FOLDER.iterdir():
        if path.is_file():
            assert f"(gallery/{path.name})" in PAGE, path.name


def test_the_numbers_of_the_page_are_those_of_the_reports():
    columns, *rows = quoted("quickstart")
    report = read("gallery/quickstart/report.html").rows
    head = next(row for row in report if row[:1] == ["mode"] and "mean score" in row)
    where = [head.index(column) for column in columns]
    there = [[row[place] for place in where] for row in report if len(row) == len(head)]
    assert len(rows) > 5
    for row in rows:
        assert row in there


def test_the_coefficients_of_the_page_are_those_of_the_explorer():
    raw = (FOLDER / "explorer.html").read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', raw, re.DOTALL)
    assert found
    data = json.loads(found[1])
    names = [task["name"] for task in data["tasks"]]
    of_all = {preset["label"]: preset["weights"] for preset in data["presets"] if preset["tasks"] == names}
    said = ", ".join(f"{weight:.3f} for {name}" for name, weight in zip(names, of_all["learned"], strict=True))
    before, _, last = said.rpartition(", ")
    assert f"*learned* is {before} and {last}, from" in PAGE
    assert of_all["best single λ"] == [0.2] * 3
    assert "*Best single λ* is 0.2 for all three" in PAGE


def test_the_recipe_of_the_explorer_is_valid_and_that_of_the_page():
    recipe, raw = load_recipe(FOLDER / "tangent.yaml"), (FOLDER / "explorer.html").read_text(encoding="utf-8")
    assert f"<h1>{recipe.title}</h1>" in raw
    assert [task.name for task in recipe.tasks] == re.findall(r'aria-label="λ of (\w+)"', raw)
