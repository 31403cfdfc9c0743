"""Coefficients from searches in a run: scored, kept, recorded, and used to make the adapter again."""

from __future__ import annotations

import csv
import json

import pytest
import torch
import yaml
from typer.testing import CliRunner

import tangora
from tangora.cli import app
from tangora.config.recipe import load_recipe
from tangora.errors import ArgumentError
from tangora.evaluation.candidates import candidate_key
from tangora.fusion.fusion import Fusion
from tiny_run import recipe_for
from toys import lora

ENTRIES = [
    {"method": "task_arithmetic", "search": "learned", "per": "site", "labels": 4, "steps": 3},
    {"method": "task_arithmetic", "search": "minimax", "labels": 4, "steps": 2},
    {"method": "ties_sum", "search": "adamerging", "parameters": {"density": 0.5}, "steps": 2, "rows_per_step": 4},
]
for entry in ENTRIES:
    entry["modes"] = ["lora"]
SOLVED = [
    {"method": "task_arithmetic", "search": search, "modes": ["tangent"], **more}
    for search, more in (
        ("convex", {}),
        ("convex", {"labels": 4, "per": "site"}),
        ("minimax", {}),
        ("adamerging", {"per": "site"}),
    )
]


@pytest.fixture(scope="module")
def finished(tiny_bert, text_data, tmp_path_factory):
    raw = recipe_for(tiny_bert, text_data)
    raw["tasks"] = raw["tasks"][:2]
    raw["modes"] = {"lora": {}, "tangent": {"linearize": "model"}}
    raw["fusion"] = {"methods": [*ENTRIES, *SOLVED], "selection": ["validation", "oracle"]}
    folder = tmp_path_factory.mktemp("searches")
    (folder / "r.yaml").write_text(yaml.safe_dump(raw))
    return tangora.run(load_recipe(folder / "r.yaml"), folder / "run"), load_recipe(folder / "r.yaml")


def scores(run):
    with (run / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_search_is_scored_and_says_what_it_found(finished):
    run, _ = finished
    table = scores(run)
    found = json.loads((run / "searches.json").read_text())["rows"]
    by_mode = {mode: {r["method"] for r in found if r["mode"] == mode} for mode in ("lora", "tangent")}
    assert by_mode["lora"] == {"learned-site", "minimax", "adamerging"}
    assert by_mode["tangent"] == {"convex", "convex-site", "minimax", "adamerging-site"}
    assert {r["split"] for r in found} == {"validation", "test"}
    for one in found:
        selection = "oracle" if one["split"] == "test" else "validation"
        same = [r for r in table if (r["mode"], r["method"], r["selection"]) == (one["mode"], one["method"], selection)]
        assert same
        assert all(json.loads(r["coefficients"])["weights"] == one["weights"] for r in same)
        assert one["rows"] == ({"plain": 4, "good": 4} if one["labels"] else one["rows"])
    sites = next(r for r in found if r["method"] == "learned-site")["weights"]
    assert len(sites) == 4
    assert all(len(row) == 2 for row in sites.values())


def test_solutions_on_columns_carry_their_proof_and_their_loss_is_that_of_the_fused_model(finished):
    found = json.loads((finished[0] / "searches.json").read_text())["rows"]
    with (finished[0] / "candidates.csv").open() as file:
        scored = [r for r in csv.DictReader(file) if r["mode"] == "tangent" and r["method"] == "convex"]
    for one in found:
        assert ("gap" in one) == (one["mode"] == "tangent" and one["search"] != "adamerging")
        assert one.get("gap", 0.0) < 1e-2
    for one in (r for r in found if r["method"] == "convex"):  # found on every row of the split
        losses = [float(r["loss"]) for r in scored if r["split"] == one["split"]]
        assert sum(losses) / 2 == pytest.approx(one["loss"], rel=1e-4)


def test_fused_adapters_tell_of_their_search_and_can_be_made_again(finished, tmp_path):
    run, _ = finished
    folder = run / "fused" / "lora" / "learned-site"
    about = json.loads((folder / "tangora.json").read_text())["fused"]
    assert about["selection"]["search"] == "learned"
    assert about["selection"]["rows"] == {"plain": 4, "good": 4}
    assert "search learned" in (folder / "README.md").read_text()
    experts = [str(run / "adapters" / "lora" / task) for task in ("plain", "good")]
    out = tmp_path / "again"
    done = CliRunner().invoke(app, ["fuse", *experts, "--weights", str(folder / "tangora.json"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert tangora.load(out).fingerprint == tangora.load(folder).fingerprint


def test_a_second_run_searches_nothing_and_ends_with_the_same(finished, monkeypatch):
    run, recipe = finished
    before = {name: (run / name).read_bytes() for name in ("scores.csv", "candidates.csv", "searches.json")}
    monkeypatch.setattr("tangora.runs.stages.search.Searches._search", None)
    monkeypatch.setattr("tangora.report.build", lambda out: out)
    tangora.run(recipe, run)
    assert before == {name: (run / name).read_bytes() for name in before}


def test_the_report_shows_searches_by_their_names(finished):
    page = (finished[0] / "report.html").read_text()
    assert "learned per site" in page
    assert "AdaMerging" in page


def test_candidates_per_site_have_keys_of_their_own():
    fusion = Fusion([lora(1), lora(2)])

    def key(weights, method="task_arithmetic", **parameters):
        return candidate_key(fusion, method, weights, parameters, 0)

    assert key({"up": [0.5, 0.5], "down": [0.5, 0.5]}) == key([0.5, 0.5]) == key([1.0, 1.0], "average")
    assert key({"up": [1.0, 0.0], "down": [1.0, 0.0]}) == fusion.adapters[0].fingerprint
    assert key({"up": [0.0, 0.0], "down": [0.0, 0.0]}) == "zero_shot"
    apart = key({"up": [0.5, 0.25], "down": [0.5, 0.5]})
    assert apart == key({"down": [0.5, 0.5], "up": [0.5, 0.25 + 1e-12]})
    assert len({apart, key([0.5, 0.5]), key({"up": [0.5, 0.5], "down": [0.5, 0.25]})}) == 3
    sites = {"up": [0.5, 0.25], "down": [0.5, 0.5]}
    assert key(sites, "ties") != key([0.5, 0.5], "ties") == key({"up": [0.5, 0.5], "down": [0.5, 0.5]}, "ties")


@pytest.mark.parametrize("text", ["{}", '{"weights": 3}', '{"fused": {"method": "ties"}}', '{"up": 0.5}'])
def test_a_file_without_weights_is_refused(tmp_path, text):
    from tangora.cli.weights import parse_weights

    (tmp_path / "w.json").write_text(text)
    with pytest.raises(ArgumentError, match="no weights in the file at"):
        parse_weights(str(tmp_path / "w.json"))


def test_weights_in_a_file(tmp_path):
    from tangora.cli.weights import parse_weights

    for inside in ([0.5, 0.25], {"up": [0.5, 0.25]}):
        (tmp_path / "w.json").write_text(json.dumps({"weights": inside}))
        assert parse_weights(str(tmp_path / "w.json")) == inside
    (tmp_path / "w.json").write_text('{"up": [0.5, 0.25]}')
    assert parse_weights(str(tmp_path / "w.json")) == {"up": [0.5, 0.25]}
    assert torch.tensor(parse_weights("0.5,0.25")).tolist() == [0.5, 0.25]
