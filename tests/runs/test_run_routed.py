"""A recipe with routers: a row in every table for every subset, an adapter, a card whose code runs; done once."""

from __future__ import annotations

import csv
import json
import re

import pytest
import torch

import tangora
from tangora.config.recipe import Recipe
from tangora.errors import FusionError
from tangora.evaluation.evaluator import evaluate
from tangora.progress import Progress
from tangora.report.data import read_run
from tangora.report.summary import Summary
from tangora.report.ways import DATA, ways
from tangora.runs.checks import check_methods
from tangora.runs.context import Context
from tangora.runs.preflight import preflight
from tangora.runs.runner import missing
from tangora.runs.runner import run as run_recipe
from tangora.runs.stages.cells import cells
from tangora.support.seams import ROUTERS
from tangora.support.validation import validate
from tiny_run import recipe_for
from workshop import done as command

SMILE, ARROW = {"method": "smile", "route": {"gate_rank": 1}}, {"method": "arrow", "route": {"top_k": 1}}


def recipe_of(model, data, *methods, modes=None):
    raw = recipe_for(model, data)
    raw["modes"] = modes or {"lora": {}, "l-lora": {"train": "l-lora"}, "tangent": {"train": "tangent"}}
    raw["training"] |= {"steps": 20}  # after fewer, experts of equal rows are compared in equal directions
    raw["fusion"] = {"subsets": {"sizes": [2, 3]}, "methods": [{"method": "average"}, *methods]}
    return validate(Recipe, raw, "test")


@pytest.fixture(scope="module")
def done(tiny_bert, text_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("routed") / "run"
    run_recipe(recipe_of(tiny_bert, text_data, SMILE, ARROW), out)
    return out


def scores(run, method):
    with (run / "scores.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["method"] == method]


@pytest.mark.parametrize("method", ["arrow", "smile"])
def test_it_has_a_row_for_every_subset(done, method):
    rows = scores(done, method)
    assert {(row["mode"], row["subset"]) for row in rows} == {
        (mode, subset)
        for mode in ("lora", "l-lora")
        for subset in ("plain+good", "plain+f1", "good+f1", "plain+good+f1")
    }
    assert {(row["selection"], row["space"], row["split"]) for row in rows} == {("given", "delta", "test")}
    expected = {"arrow": {"top_k": 1, "temperature": 1.0}, "smile": {"top_k": 1, "gate_rank": 1}}[method]
    assert {row["coefficients"] for row in rows} == {json.dumps({"parameters": expected})}
    assert method in (done / "report.html").read_text().lower()


@pytest.mark.parametrize("method", ["arrow", "smile"])
def test_the_adapter_scores_what_the_table_says(done, method):
    context = Context.open(done)
    for mode in ("lora", "l-lora"):
        adapter = tangora.load(done / "fused" / mode / method)
        assert (adapter.metadata.kind, adapter.metadata.fused.method) == ("routed", method)
        assert adapter.metadata.mode == mode
        assert adapter.metadata.scores["selection"] == "given"
        assert set(adapter.records) == {"plain", "good", "f1"}
        table = {r["task"]: r for r in scores(done, method) if (r["mode"], r["subset"]) == (mode, "plain+good+f1")}
        for task, result in evaluate(adapter, context.base, list(context.tasks.values())).items():
            assert float(table[task]["score"]) == pytest.approx(result.score)
            assert adapter.metadata.scores["tasks"][task] == pytest.approx(result.score)


def test_modes_that_cannot_be_routed_have_no_row(done, tiny_bert, text_data):
    assert scores(done, "average")
    assert {row["mode"] for row in scores(done, "average")} == {"lora", "l-lora", "tangent"}
    assert not (done / "fused" / "tangent" / "smile").exists()
    named = recipe_of(tiny_bert, text_data, {**SMILE, "modes": ["lora", "tangent"]})
    with pytest.raises(FusionError, match=r"adapters of train: tangent cannot be routed, got 'tangent'"):
        check_methods(named)
    for train in ("full", "dora", "tangent"):
        with pytest.raises(FusionError, match=f"adapters of train: {train} cannot be routed"):
            check_methods(recipe_of(tiny_bert, text_data, SMILE, modes={"m": {"train": train}}))
    assert {cell.mode for cell in cells(recipe_of(tiny_bert, text_data, SMILE)) if cell.entry.route} == {
        "lora",
        "l-lora",
    }


def test_nothing_is_done_twice(done):
    assert missing(Context.open(done)) == []


def test_a_change_of_the_router_is_another_row(done, tiny_bert, text_data, tmp_path):
    def keys(*methods):
        context = Context(done, recipe_of(tiny_bert, text_data, *methods))
        return {job.key for job in context.plan if job.kind == "fusion-scores" and job.mode != "tangent"}

    assert keys(SMILE) == keys({"method": "smile", "route": {"gate_rank": 1, "top_k": 1}})
    assert not keys(SMILE) & keys({"method": "smile", "route": {"gate_rank": 1, "top_k": 2}})


def test_the_code_of_the_card_answers(done):
    folder, context = done / "fused" / "lora" / "smile", Context.open(done)
    card = (folder / "README.md").read_text()
    codes = [
        code.replace("path/to/this/folder", str(folder)) for code in re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    ]
    assert len(codes) == 3
    rows = ["a red photo", "this is blue"]
    expected = tangora.predictor(folder, task="plain")(rows)
    for code in codes:
        names = {}
        exec(re.sub(r'\["a text"\]', str(rows), code), names)
        if "answers" in names:
            assert names["answers"].answers == expected.answers
        elif "logits" in names:
            torch.testing.assert_close(names["logits"].softmax(-1), expected.probabilities, rtol=0, atol=1e-5)
        else:
            batch = tangora.load_model(folder, task="plain").encode(rows)
            assert names["model"](**batch).last_hidden_state.shape[:2] == batch["input_ids"].shape
    task = next(t for t in context.tasks.values() if t.name == "plain")
    assert tangora.predict(folder, context.base, task, progress=False).answers


def test_the_commands_answer_and_score(done):
    folder = done / "fused" / "lora" / "arrow"
    answers = json.loads(command("predict", folder, "--task", "plain", "--text", "a red photo", "--json").stdout)
    assert [one["answer"] for one in answers["answers"]] == tangora.predictor(folder, task="plain")(
        ["a red photo"]
    ).answers
    scored = json.loads(command("evaluate", done / "recipe.yaml", folder, "--json").stdout)
    assert scored["split"] == "test"
    table = {r["task"]: r for r in scores(done, "arrow") if (r["mode"], r["subset"]) == ("lora", "plain+good+f1")}
    found = scored["scores"][str(folder)]["tasks"]
    for task, one in found.items():
        assert float(table[task]["score"]) == pytest.approx(one["score"])


def test_experts_and_joint_training_are_compared_in_one_run(tiny_bert, text_data, tmp_path):
    modes = {"lora": {}, "joint": {"train": "joint-lora"}, "mode": {"train": "dyadic", "ups": 2, "router": "core"}}
    recipe = recipe_of(tiny_bert, text_data, SMILE, modes=modes)
    sizes = {mode.mode: mode for mode in preflight(recipe, tmp_path / "run", Progress()).modes}
    assert sizes["mode"].sites == sizes["lora"].sites == 4
    out = run_recipe(recipe, tmp_path / "run")
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["mode"] for row in rows if row["method"] == "smile"} == {"lora"}
    experts = {row["task"] for row in rows if (row["mode"], row["method"]) == ("mode", "expert")}
    assert experts >= {"plain", "good", "f1"}
    folders = [out / "adapters" / "mode" / name for name in ("plain", "good", "f1")]
    assert len({tangora.load(folder).fingerprint for folder in folders}) == 1
    found = ways(Summary(read_run(out)))
    assert {way.group for way in found} == {"separate", "fused", "routed", "joint"}
    (routed,) = (way for way in found if way.group == "routed")
    assert routed.data == DATA[1]
    assert routed.stored > next(way for way in found if way.group == "separate").stored, "experts and gates"


def test_a_router_that_learns_is_done_once_and_kept(tiny_bert, text_data, tmp_path, monkeypatch):
    calls = []

    class Learns(type(ROUTERS.get("smile"))):
        """Counts how often it learns."""

        needs = "rows"

        def __call__(self, experts, settings, bench=None):
            calls.append([task.name for task in bench.tasks])
            bench.on_step(1, 2, 0.5)
            assert bench.seed == 0
            return super().__call__(experts, settings)

    monkeypatch.setitem(ROUTERS._members, "smile", Learns())
    recipe = recipe_of(tiny_bert, text_data, SMILE, modes={"lora": {}})
    run_recipe(recipe, tmp_path / "run")
    assert sorted(map(len, calls)) == [2, 2, 2, 3]
    assert len(list((tmp_path / "run" / "cache" / "routed").glob("*/tangora.json"))) == 4
    assert missing(Context.open(tmp_path / "run")) == []
    assert scores(tmp_path / "run", "smile")
