"""The page in a real browser, and what can be said of it without one."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from chromium import visit
from synthetic import TASKS, make_run

from tangora import report
from tangora.errors import FileError
from tangora.report import tables
from tangora.report.data import read_run
from tangora.report.figures import PLOTS
from tangora.report.headline import headline
from tangora.report.summary import Summary

WIDTHS = {"wide": 1280, "narrow": 380, "phone": 360}

SHOWN = [plot for plot in PLOTS if plot.name != "ways"]  # the run has neither joint modes nor routed fusions


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS.values(), ids=WIDTHS)
def test_it_loads_quietly_and_fits(browser, run, scheme, width):
    page, heard = visit(browser, run / "report.html", width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    assert heard == [f"request: {(run / 'report.html').as_uri()}"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
    layout = "wide" if width == 1280 else "narrow"
    shown = page.evaluate("[...document.querySelectorAll('figure svg')].filter((s) => s.checkVisibility()).length")
    assert shown == len(SHOWN)
    assert page.locator(f"figure .{layout} svg").first.is_visible()


@pytest.mark.parametrize("width", [1280, 960, 959, 380, 360])
def test_no_text_in_a_figure_is_too_small_to_read(browser, run, width):
    page, _ = visit(browser, run / "report.html", width)
    sizes = page.evaluate(
        """[...document.querySelectorAll('figure svg text')].filter((t) => t.checkVisibility()).map((t) => {
             const matrix = t.getScreenCTM();
             return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(matrix.a, matrix.b);
           })"""
    )
    assert min(sizes) >= 10.99


def test_the_headline_is_that_of_the_files(browser, run):
    page, _ = visit(browser, run / "report.html")
    found = headline(Summary(read_run(run)))
    assert page.locator("#headline p").all_text_contents() == found.sentences
    with (run / "scores.csv").open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if r["task"] == "mean" and r["n_tasks"] == "7"]
    best = max((r for r in rows if r["selection"] != "oracle"), key=lambda r: float(r["score"]))
    assert f"scores {float(best['score']):.3f} " in found.sentences[0]
    assert f"keeps {100 * float(best['normalized']):.1f}\u00a0%" in found.sentences[0]


def test_the_theme_can_be_changed_by_keyboard(browser, run):
    page, heard = visit(browser, run / "report.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert page.locator("#theme").inner_text() == "Light theme"
    fill = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    page.keyboard.press("Enter")
    assert page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill") != fill
    assert len(heard) == 1


def test_tables_sort_both_ways(browser, run):
    page, _ = visit(browser, run / "report.html")
    table = page.locator("table").first
    heading = table.locator("thead th").nth(3)
    column = "rows => rows.map((r) => parseFloat(r.cells[3].textContent))"
    for direction, reverse in (("descending", True), ("ascending", False)):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        values = table.locator("tbody tr").evaluate_all(column)
        assert values == sorted(values, reverse=reverse)


def test_names_cannot_become_markup(browser, hostile):
    page, heard = visit(browser, hostile / "report.html")
    assert [h for h in heard if not h.startswith("request: file:")] == []
    assert page.locator("h1").inner_text() == "<script>alert('title')</script>"
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    texts = page.locator("figure .wide svg text").all_text_contents()
    assert "$x_1^2$" in texts
    assert any(t.startswith("<img src=x") for t in texts)
    assert "49" not in page.locator("thead").first.inner_text()


class Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def outline(run):
    parser = Outline()
    parser.feed((run / "report.html").read_text())
    return parser.tags


def test_structure_for_assistive_technology(outline):
    names = [tag for tag, _ in outline]
    assert [names.count(t) for t in ("h1", "main", "header", "nav", "footer")] == [1, 1, 1, 1, 1]
    assert names.count("caption") == names.count("table") == 6
    assert all("scope" in attrs for tag, attrs in outline if tag == "th")
    identifiers = [attrs["id"] for _, attrs in outline if "id" in attrs]
    assert len(identifiers) == len(set(identifiers))
    for _, attrs in outline:
        for reference in (attrs.get("aria-labelledby") or "").split():
            assert reference in identifiers
        if (attrs.get("href") or "").startswith("#"):
            assert attrs["href"][1:] in identifiers
    pictures = [attrs for tag, attrs in outline if tag == "svg"]
    assert len(pictures) == 2 * len(SHOWN)
    assert all(attrs["role"] == "img" and attrs["aria-labelledby"] for attrs in pictures)


def test_the_page_asks_for_nothing(outline, run):
    policy = next(a["content"] for t, a in outline if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline'; img" in policy
    assert re.search(r"script-src 'sha256-[\w+/=]+'$", policy)
    links = [a["href"] for t, a in outline if t == "a"]
    assert all(not re.match(r"\w+:|//", link) for link in links)
    assert all((run / link).is_file() for link in links if not link.startswith("#"))
    assert not any("src" in a for t, a in outline if t in {"script", "img", "iframe"})


def test_figures_are_files(run):
    names = {p.name for p in (run / "figures").iterdir()}
    assert names == {f"{plot.name}.{kind}" for plot in SHOWN for kind in ("png", "pdf")}
    for plot in SHOWN:
        assert (run / "figures" / f"{plot.name}.png").read_bytes().startswith(b"\x89PNG")
        assert (run / "figures" / f"{plot.name}.pdf").read_bytes().startswith(b"%PDF")


def test_oracle_rows_are_marked(run):
    text = (run / "report.html").read_text()
    assert text.count("† test (oracle)") == 6  # three modes in two tables
    assert "an upper bound, not a result" in text
    rows = re.findall(r"<tr([^>]*)>(.*?)</tr>", text, re.DOTALL)
    assert all('class="oracle"' in attrs for attrs, cells in rows if "oracle" in cells)


def bare_run(folder: Path) -> Path:
    """A run with nothing but a short scores.csv: quick to draw."""
    make_run(folder / "whole", TASKS[:2])
    lines = (folder / "whole" / "scores.csv").read_text().splitlines()
    kept = [line for line in lines if not re.search("task_arithmetic|ties|lorahub", line)]
    (folder / "bare").mkdir()
    (folder / "bare" / "scores.csv").write_text("\n".join(kept) + "\n")
    return folder / "bare"


def test_a_bare_run_says_what_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MOST_ROWS", 10)
    folder = bare_run(tmp_path)
    text = report.build(folder).read_text()
    for name in ("candidates.csv", "similarity.json", "adapters/MODE/TASK/training.json"):
        assert f"Left out: there is no {name} in the run." in text
    assert "there is no run.json in the run" in text
    assert "there is no recipe.yaml in the run" in text
    assert {p.stem for p in (folder / "figures").iterdir()} == {"score_by_tasks", "kept_by_tasks", "per_task"}
    assert 'too many for a page: <a href="scores.csv">' in text
    assert "<code>tangora analyze</code> on this folder adds them" in text
    assert "Every row of scores.csv" not in text


def test_building_again_gives_the_same_bytes_and_clears_old_figures(tmp_path):
    folder = bare_run(tmp_path)
    report.build(folder)
    before = {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    (folder / "figures" / "stale.png").write_bytes(b"old")
    report.build(folder)
    assert {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_a_failure_leaves_the_old_report(tmp_path):
    folder = make_run(tmp_path / "run", TASKS[:2])
    (folder / "report.html").write_text("old")
    (folder / "scores.csv").unlink()
    with pytest.raises(FileError):
        report.build(folder)
    assert (folder / "report.html").read_text() == "old"
    assert not (folder / "figures").exists()


def test_neither_torch_nor_pyplot_is_needed(tmp_path):
    folder = bare_run(tmp_path)
    code = (
        "import sys; from tangora.report import build, terminal; "
        f"build({str(folder)!r}); terminal({str(folder)!r}); "
        "print(sorted({'torch', 'matplotlib.pyplot', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
