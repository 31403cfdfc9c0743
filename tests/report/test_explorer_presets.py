"""The explorer of a real run: every preset's figures are those of `scores.csv`, also of coefficients per layer."""

from __future__ import annotations

import csv
import json
import re
import shlex
import subprocess

import pytest
import torch
import yaml
from chromium import visit
from typer.testing import CliRunner

import tangora
from tangora.cli import commands as cli
from tangora.config.recipe import load_recipe
from tangora.errors import FileError
from tangora.report import explorer
from tangora.tangent.columns import load_columns
from tiny_run import recipe_for

TASKS = ["plain", "good", "f1"]
PRESETS = {"learned": "convex", "AdaMerging": "adamerging", "learned-site": "convex", "adamerging-site": "adamerging"}
METHODS = {"AdaMerging": "adamerging"}  # a preset's label -> the method's in scores.csv, where it is another


@pytest.fixture(scope="module")
def run(tiny_bert, text_data, tmp_path_factory):
    raw = recipe_for(tiny_bert, text_data)
    raw["modes"] = {"tangent": {"linearize": "model"}}
    entry = {"method": "task_arithmetic", "labels": 6}
    raw["fusion"]["methods"] = [
        {**entry, "search": "convex", "name": "learned"},
        {**entry, "search": "adamerging"},
        {**entry, "search": "convex", "per": "site", "name": "learned-site"},
        {**entry, "search": "adamerging", "per": "site"},
    ]
    raw["fusion"]["subsets"] = {"sizes": [2, 3], "per_size": 1}
    folder = tmp_path_factory.mktemp("presets")
    (folder / "r.yaml").write_text(yaml.safe_dump(raw))
    return tangora.run(load_recipe(folder / "r.yaml"), folder / "run")


def table(run):
    with (run / "scores.csv").open() as file:
        return [r for r in csv.DictReader(file) if r["mode"] == "tangent" and r["selection"] == "validation"]


def expected(run, label, subset, split):
    """Task -> score, and what is kept of the experts."""
    method = METHODS.get(label, label)
    chosen = [r for r in table(run) if (r["method"], r["subset"], r["split"]) == (method, "+".join(subset), split)]
    scores = {r["task"]: float(r["score"]) for r in chosen if r["task"] in TASKS}
    kept = [float(r["normalized"]) for r in chosen if r["task"] in subset and r["normalized"]]
    return scores, sum(kept) / len(kept) if kept else None  # no share of an expert worse than zero-shot


def number(text):
    return None if text == "–" else float(text.replace("\u2212", "-").replace("\u00a0%", ""))


def shown(page):
    page.locator("#figures[aria-busy=false]").wait_for()
    scores = [number(text) for text in page.locator(".tasks .score .figure").all_text_contents()]
    kept = number(page.inner_text("#kept"))
    return dict(zip(TASKS, scores, strict=True)), None if kept is None else kept / 100


def content(page):
    text = page.read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])


def per_layer(run, size):
    found = content(explorer.build(run))["presets"]
    return next(p for p in found if p["label"] == "learned-site" and len(p["tasks"]) == size)


def subsets(run):
    return sorted({tuple(r["subset"].split("+")) for r in table(run)}, key=len)


@pytest.mark.parametrize("label", PRESETS)
def test_a_preset_shows_what_the_run_scored(browser, run, label):
    page, heard = visit(browser, explorer.build(run))
    assert [len(s) for s in subsets(run)] == [2, 3]
    for subset in subsets(run):
        page.select_option("#subset", "+".join(subset))
        page.get_by_role("button", name=label, exact=True).click()
        for split in ("validation", "test"):
            page.locator(f"[name=split][value={split}]").check()
            scores, kept = expected(run, label, subset, split)
            found, found_kept = shown(page)
            assert {t: found[t] for t in scores} == pytest.approx(scores, abs=0.00051)
            assert found_kept == pytest.approx(kept, abs=0.00051)
            assert scores.keys() >= set(subset)
            assert page.locator("#apart").is_visible() == label.endswith("site")
    assert len(heard) == 1


def test_no_slider_has_coefficients_per_layer(browser, run):
    page, _ = visit(browser, explorer.build(run))
    preset = per_layer(run, 3)
    page.get_by_role("button", name="learned-site").click()
    shown(page)
    assert page.locator(".tasks .lambda").all_text_contents() == ["–"] * 3
    slider = page.get_by_role("slider", name="λ of good")
    assert slider.get_attribute("aria-valuetext").startswith("per layer, score ")
    at = [float(s.input_value()) for s in page.get_by_role("slider").all()]
    assert at == pytest.approx(preset["weights"], abs=0.0051)
    assert page.inner_text("#layers") == "4"
    page.get_by_role("button", name="Make the present coefficients the reference").click()
    assert page.inner_text("#gain") == "+0.0 points"
    assert page.inner_text("#flips-heading") == "What changes against learned-site"
    assert page.inner_text("#flip-counts") == "No validation row changes class."
    slider.focus()
    page.keyboard.press("Home")  # the mean over layers may be the slider's largest value
    after, _ = shown(page)
    assert page.locator("#apart").is_hidden()
    assert number(page.locator(".tasks .lambda").nth(1).text_content()) == float(slider.get_attribute("min"))
    moved = [preset["weights"][0], float(slider.get_attribute("min")), preset["weights"][2]]
    for task in ("plain", "good"):
        columns = load_columns(run / "cache" / "columns" / "tangent" / f"{task}-validation.safetensors")
        right = columns.logits(torch.tensor(moved)).argmax(-1) == columns.labels
        assert after[task] == pytest.approx(float(right.float().mean()), abs=0.00051)
    assert " --weights=" in page.inner_text("#command")


@pytest.mark.parametrize("size", [2, 3])
def test_the_command_of_a_preset_per_layer_makes_its_adapter(run, size, tmp_path, monkeypatch):
    monkeypatch.chdir(run)
    preset = per_layer(run, size)
    *before, fuse = preset["command"].split(" && ")
    for line in before:
        subprocess.run(line, shell=True, check=True, cwd=tmp_path)
    _, *arguments = [str(tmp_path / word) if word in ("fused", "weights.json") else word for word in shlex.split(fuse)]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert bool(before) == (size == 2)
    made = tangora.load(tmp_path / "fused").metadata.fused
    row = next(r for r in table(run) if r["method"] == "learned-site" and r["subset"] == "+".join(preset["tasks"]))
    assert made.weights == json.loads(row["coefficients"])["weights"]
    assert [parent.task for parent in made.parents] == preset["tasks"]


def test_what_has_no_room_or_was_not_kept_is_said(run, monkeypatch):
    kept = run / "cache" / "predictions.json"
    text = kept.read_text()
    size = len(json.dumps(content(explorer.build(run))["presets"][-1], separators=(",", ":")))
    monkeypatch.setattr(explorer, "_SITE_PREDICTIONS", 3 * size)
    small = explorer.build(run).read_text()
    assert "is no preset: there is no room for it" in small
    assert "learned-site of plain + good + f1 is no preset" not in small  # the largest set comes first
    try:
        kept.unlink()
        page = explorer.build(run)
        assert "learned-site is no preset: its coefficients are per layer" in page.read_text()
        assert {p["label"] for p in content(page)["presets"]} == {"learned", "AdaMerging"}
        kept.write_text('{"rows": [1]}')
        with pytest.raises(FileError, match=r"no predictions in the file at .*predictions\.json"):
            explorer.build(run)
    finally:
        kept.write_text(text)
