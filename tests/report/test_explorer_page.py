"""The fusion explorer in a real browser: every figure against Python's."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from chromium import visit
from explorer_run import CLASSES, make_run, weights

from tangora.cli.commands import command
from tangora.cli.weights import parse_weights
from tangora.report import explorer
from tangora.tangent.columns import load_columns
from tangora.tasks.metrics import score

NAMES = list(CLASSES)
TENTH = 0.00101  # a tenth of a point; pages show three digits


class Truth:
    """What Python says of a run's columns."""

    def __init__(self, folder, names=NAMES, metrics=()):
        self.names, self.metrics = names, dict(zip(names, metrics, strict=False))
        path = folder / "cache" / "columns" / "tangent"
        read = {(s, n): load_columns(path / f"{n}-{s}.safetensors") for s in ("validation", "test") for n in names}
        self.columns = read

    def predictions(self, split, name, coefficients):
        logits = self.columns[split, name].logits(torch.as_tensor(coefficients, dtype=torch.float32))
        return logits.argmax(-1).tolist()

    def score(self, split, name, coefficients):
        labels = self.columns[split, name].labels.tolist()
        return score(self.metrics.get(name, "accuracy"), self.predictions(split, name, coefficients), labels)

    def scores(self, split, coefficients):
        return [self.score(split, name, coefficients) for name in self.names]

    def kept(self, split, coefficients, tasks=None):
        shares = []
        for name in tasks or self.names:
            own = [float(other == name) for other in self.names]
            shares.append(self.score(split, name, coefficients) / self.score(split, name, own))
        return sum(shares) / len(shares)


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """A run of seven tasks, its page, and the truth about it."""
    folder = make_run(tmp_path_factory.mktemp("explorer") / "run")
    return explorer.build(folder), Truth(folder)


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").replace("\u00a0%", ""))


def settled(page, part="figures"):
    page.locator(f"#{part}[aria-busy=false]").wait_for()


def shown(page) -> tuple[list[float], float, float]:
    """Scores of the tasks, what is kept, and what is kept on test; after the page has settled."""
    settled(page)
    scores = [number(text) for text in page.locator(".tasks .score .figure").all_text_contents()]
    return scores, number(page.inner_text("#kept")) / 100, number(page.inner_text("#test-kept")) / 100


def agree(page, truth, coefficients, split="validation", tasks=None):
    scores, kept, test = shown(page)
    assert scores == pytest.approx(truth.scores(split, coefficients), abs=TENTH)
    assert kept == pytest.approx(truth.kept(split, coefficients, tasks), abs=TENTH)
    assert test == pytest.approx(truth.kept("test", coefficients, tasks), abs=TENTH)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (360, "dark")])
def test_it_loads_quietly_and_fits(browser, seven, width, scheme):
    page, heard = visit(browser, seven[0], width, scheme)
    page.locator("#flip-list li").first.wait_for()
    assert heard == [f"request: {seven[0].as_uri()}"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate(
        """[...document.querySelectorAll('.planes text')].map((t) => {
             const matrix = t.getScreenCTM();
             return parseFloat(getComputedStyle(t).fontSize) * Math.hypot(matrix.a, matrix.b);
           })"""
    )
    assert min(sizes) >= 10.99
    assert page.locator("img").count() == 0  # texts and classes cannot become markup
    assert "</script><img src=x" in page.inner_text("#flip-list")


def test_sliders_by_keyboard(browser, seven):
    from playwright.sync_api import expect  # deferred: the fixture skips without it

    page, _ = visit(browser, seven[0])
    page.get_by_role("button", name="zero-shot").click()
    agree(page, seven[1], [0.0] * 7)
    slider = page.get_by_role("slider", name="λ of banking77")
    slider.focus()
    page.keyboard.press("End")
    agree(page, seven[1], [0, 0, 0, 0, 0, float(slider.get_attribute("max")), 0])
    for key in ["PageDown", "PageDown", "ArrowLeft", "ArrowLeft", "ArrowLeft"]:
        page.keyboard.press(key)
    at = float(slider.input_value())
    assert 0 < at < float(slider.get_attribute("max"))
    expect(slider).to_have_attribute("aria-valuetext", re.compile(rf"^{at:.2f}, score \."))  # set with the next frame
    first = page.get_by_role("slider", name="λ of sst2")
    first.focus()
    page.keyboard.press("Home")
    agree(page, seven[1], [float(first.get_attribute("min")), 0, 0, 0, 0, at, 0])
    spoken = page.inner_text("#spoken")
    assert page.inner_text("#kept") in spoken
    assert page.get_by_role("button", name="zero-shot").get_attribute("aria-pressed") == "false"


MOVE = """async (vectors) => {
  const found = [];
  const sliders = [...document.querySelectorAll(".tasks [type=range]")];
  for (const vector of vectors) {
    sliders.forEach((slider, k) => { slider.value = vector[k]; slider.dispatchEvent(new Event("input")); });
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    found.push([...document.querySelectorAll(".tasks .score .figure")].map((node) => node.textContent));
  }
  return found;
}"""


@pytest.mark.parametrize("split", ["validation", "test"])
def test_many_coefficients(browser, seven, split):
    page, heard = visit(browser, seven[0])
    page.locator(f"[name=split][value={split}]").check()
    assert page.locator("#warning").is_visible() == (split == "test")
    generator = torch.Generator().manual_seed(1)
    vectors = (2 * torch.rand(40, 7, generator=generator) - 0.5).mul(100).round().div(100).tolist()
    for vector, texts in zip(vectors, page.evaluate(MOVE, vectors), strict=True):
        assert [number(t) for t in texts] == pytest.approx(seven[1].scores(split, vector), abs=TENTH)
    assert len(heard) == 1


def test_presets_and_subsets(browser, seven):
    page, truth = visit(browser, seven[0])[0], seven[1]
    page.get_by_role("button", name="average").click()
    agree(page, truth, [1 / 7] * 7)
    assert page.inner_text("#gain") == "+0.0 points"
    page.get_by_role("button", name="best single λ").click()
    agree(page, truth, [0.5] * 7)
    page.get_by_role("button", name="LoraHub").click()
    agree(page, truth, weights(NAMES))
    page.select_option("#subset", "trec6+ag_news+tweet_emotion")
    three = NAMES[1:4]
    agree(page, truth, [0, *weights(three), 0, 0, 0], tasks=three)
    assert page.get_by_role("button", name="LoraHub").get_attribute("aria-pressed") == "true"
    page.get_by_role("checkbox", name="trec6").uncheck()
    two = three[1:]
    agree(page, truth, [0, 0, *weights(three)[1:], 0, 0, 0], tasks=two)
    assert page.eval_on_selector("#subset", "s => s.selectedOptions[0].text") == "your choice"
    assert page.get_by_role("slider", name="λ of trec6").is_disabled()
    page.get_by_role("button", name="best single λ").click()
    values = [truth.kept("validation", [0, 0, x / 20, x / 20, 0, 0, 0], two) for x in range(1, 31)]
    best = (1 + values.index(max(values))) / 20
    agree(page, truth, [0, 0, best, best, 0, 0, 0], tasks=two)


def test_the_planes(browser, seven):
    page, truth = visit(browser, seven[0])[0], seven[1]
    page.select_option("#plane-a", label="snips")
    page.select_option("#plane-b", label="banking77")
    settled(page, "planes")
    axis = [(i - 5) / 10 for i in range(21)]
    kept = {(x, y): truth.kept("validation", [0.5, 0.5, 0.5, 0.5, x, y, 0.5]) for x in axis[::4] for y in axis[::4]}
    low, high = (number(t) / 100 for t in re.findall(r"[\d.]+\u00a0%", page.text_content("#kept-caption")))
    assert low <= min(kept.values()) + TENTH
    assert high >= max(kept.values()) - TENTH
    errors = {(x, y): xi(truth, "snips", "banking77", x, y) for x in axis for y in axis}
    unit = [error for (x, y), error in errors.items() if 0 <= x <= 1 and 0 <= y <= 1]
    found = [float(t) for t in re.findall(r"\d\.\d\d", page.text_content("#error-caption"))]
    assert found == pytest.approx([max(errors.values()), sum(unit) / len(unit)], abs=0.0051)
    assert page.locator("#error-plane .cell").nth(5 * 21 + 5).get_attribute("fill-opacity") == "0.040"  # ξ(0, 0) = 0
    page.get_by_role("button", name="Go to what keeps most").click()
    _, best, _ = shown(page)
    assert best == pytest.approx(high, abs=TENTH)
    plane = page.locator("#error-plane")
    side = plane.bounding_box()["width"] / 360  # the drawing has 300 of 360 units, from (46, 8) on
    plane.click(position={"x": side * (46 + 300 * 18.5 / 21), "y": side * (8 + 300 * 2.5 / 21)})
    settled(page)
    clicked = [page.get_by_role("slider", name=f"λ of {name}").input_value() for name in ("snips", "banking77")]
    assert clicked == ["1.3", "1.3"]


def xi(truth, first, second, x, y) -> float:
    def changed(task, at):
        alone = [v if name == task else 0.0 for name, v in at.items()]
        pairs = zip(*(truth.predictions("validation", task, c) for c in (alone, list(at.values()))), strict=True)
        return sum(a != b for a, b in pairs) / len(truth.columns["validation", task].labels)

    at = {name: x if name == first else y if name == second else 0.0 for name in NAMES}
    return changed(first, at) + changed(second, at)


def test_rows_that_flip(browser, seven):
    page, truth = visit(browser, seven[0])[0], seven[1]
    settled(page)
    expected = {"gained": 0, "lost": 0, "other": 0}
    for name in NAMES:
        rows = zip(
            truth.predictions("validation", name, [1 / 7] * 7),
            truth.predictions("validation", name, [0.5] * 7),
            truth.columns["validation", name].labels.tolist(),
            strict=True,
        )
        for before, after, right in rows:
            if before != after:
                expected["gained" if after == right else "lost" if before == right else "other"] += 1
    found = [int(n) for n in re.findall(r"\d+", page.inner_text("#flip-counts"))]
    assert found == [sum(expected.values()), *expected.values()]
    assert page.locator("#flip-list li").count() == 12
    page.get_by_role("button", name="Show more").click()
    assert page.locator("#flip-list li").count() == 24
    page.select_option("#flip-task", label="banking77")
    page.select_option("#flip-kind", "lost")
    for entry in page.locator("#flip-list li").all_inner_texts():
        assert re.search(r"validation \d+: the train to Lyon.*\n?banking77: <banking77> kind", entry, re.DOTALL)
    page.get_by_role("button", name="Make the present coefficients the reference").click()
    assert page.inner_text("#flips-heading") == "What changes against best single λ"
    assert page.inner_text("#flip-counts") == "No validation row changes class."


def test_the_command(browser, seven):
    page, _ = visit(browser, seven[0])
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="LoraHub").click()
    page.get_by_role("checkbox", name="snips").uncheck()
    settled(page)
    page.get_by_role("button", name="Copy the command").click()
    page.locator("#copied", has_text="Copied").wait_for()
    program, *arguments = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    fuse = command("fuse").built().make_context("fuse", arguments[1:]).params
    folder = Path("adapters/tangent")
    assert (program, arguments[0], fuse["method"]) == ("tangora", "fuse", "task_arithmetic")
    assert fuse["adapters"] == [str(folder / name) for name in NAMES if name != "snips"]
    assert parse_weights(fuse["weights"]) == [w for w, n in zip(weights(NAMES), NAMES, strict=True) if n != "snips"]


def test_metrics_that_are_not_a_mean_over_rows(browser, tmp_path):
    classes, metrics = {"a": 3, "b": 2, "c": 4}, ("macro_f1", "matthews", "exact_match")
    page, _ = visit(browser, explorer.build(make_run(tmp_path / "run", classes, metrics=metrics)))
    truth = Truth(tmp_path / "run", list(classes), metrics)
    for vector in ([0.0, 0.0, 0.0], [0.3, 0.9, -0.4], [1.0, 0.2, 1.1]):
        page.evaluate(MOVE, [vector])
        agree(page, truth, vector)


def test_a_whole_page_of_the_largest_size(browser, tmp_path):
    """Seven tasks of 77 classes and 500 rows: what fills a page, and accuracies as Python has them all the same."""
    classes = dict.fromkeys(NAMES, 77)
    folder = make_run(tmp_path / "run", classes, {"validation": 500, "test": 500})
    everything = {name: (torch.arange(500) % 77).tolist() for name in NAMES}
    apart = {"mode": "tangent", "method": "lorahub", "selection": "validation", "subset": NAMES}
    apart |= {"weights": {"layer": [0.5] * 7}, "predictions": {"validation": everything, "test": everything}}
    (folder / "cache" / "predictions.json").write_text(json.dumps({"rows": [apart] * 9}))
    built, truth = explorer.build(folder), Truth(folder)
    assert 13e6 < built.stat().st_size < 15e6
    page, heard = visit(browser, built)
    settled(page)
    generator = torch.Generator().manual_seed(2)
    vectors = (2 * torch.rand(12, 7, generator=generator) - 0.5).mul(100).round().div(100).tolist()
    for vector, texts in zip(vectors, page.evaluate(MOVE, vectors), strict=True):
        differences = [number(t) - s for t, s in zip(texts, truth.scores("validation", vector), strict=True)]
        assert abs(sum(differences)) / 7 <= 0.001
        assert max(map(abs, differences)) <= 0.002 + 0.0005  # one row of 500, and the third digit
    assert heard == [f"request: {built.as_uri()}"]
