"""A run on the machine that its recipe names: in half precision, and with the model on another device."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import pytest
import torch
import yaml

import tangora
from tangora.adapters.adapter import Adapter, BaseInfo
from tangora.api.finetuning import finetune
from tangora.api.predicting import predict
from tangora.coefficients.forward import ForwardLogits
from tangora.config.recipe import Recipe, load_recipe
from tangora.evaluation.collection import collect_statistics
from tangora.evaluation.evaluator import evaluate
from tangora.modes.distillation import distill
from tangora.runs.machine import machine_of
from tangora.support.machine import Machine
from tangora.tangent import make_columns, site_columns
from tangora.tasks import TaskModel, load_base, load_task
from tiny_run import recipe_for
from toys import lora


@pytest.fixture(scope="module")
def everything(tiny_bert, text_data):
    """A recipe with every kind of work that a run does."""
    raw = recipe_for(tiny_bert, text_data)
    raw["tasks"] = raw["tasks"][:2]
    raw["modes"] = {
        "full": {"train": "full"},
        "lora": {},
        "l-lora": {"train": "l-lora"},
        "tangent": {"train": "tangent"},
    }
    raw["training"]["steps"] = 2
    raw["fusion"] = {
        "subsets": {"sizes": [2]},
        "methods": [
            {"method": "task_arithmetic", "weights": [0.5, 1.0]},
            {"method": "regmean", "modes": ["lora"]},
            {"method": "task_arithmetic", "search": "learned", "labels": 4, "steps": 2},
            {"method": "task_arithmetic", "search": "lorahub", "budget": 2, "modes": ["lora"]},
        ],
    }
    return raw


def test_a_whole_run_in_bfloat16(everything, tmp_path):
    path = tmp_path / "half.yaml"
    path.write_text(yaml.safe_dump({**everything, "machine": {"dtype": "bfloat16", "device": "cpu"}}))
    run = tangora.run(load_recipe(path), tmp_path / "run")
    rows = list(csv.DictReader((run / "scores.csv").open()))
    assert {row["mode"] for row in rows if row["method"] == "expert"} == {"full", "lora", "l-lora", "tangent"}
    assert {"learned", "lorahub", "regmean", "task_arithmetic"} <= {row["method"] for row in rows}
    assert all(0.0 <= float(row["score"]) <= 1.0 for row in rows)
    adapter = tangora.load(run / "adapters" / "lora" / "plain")
    assert all(update.dense().dtype == torch.float32 for update in adapter.updates.values())
    assert "dtype: bfloat16" in (run / "recipe.yaml").read_text()


def test_results_of_another_dtype_are_not_reused(text_base, text_data, tiny_bert):
    files = {split: str(text_data / f"{split}.parquet") for split in ("train", "test")}
    raw = {"name": "colors", "source": {"parquet": files}, "labels": ["red", "green", "blue"]}
    recipe = {**recipe_for(tiny_bert, text_data), "tasks": [raw], "fusion": {}}
    config = load_recipe_of(recipe)
    prints = [
        load_task(config.tasks[0], load_base(config.base, Machine(dtype=dtype)), seed=0).fingerprint
        for dtype in ("float32", "bfloat16")
    ]
    assert prints[0] != prints[1]


def load_recipe_of(raw):
    return Recipe.model_validate(raw)


def test_a_run_goes_on_with_the_threads_it_began_with(everything, tmp_path, monkeypatch):
    from tangora.support import machine

    recipe = load_recipe_of(everything)
    monkeypatch.setattr(machine, "measured_threads", lambda: 3)
    assert machine_of(recipe, tmp_path).threads == 3
    assert json.loads((tmp_path / "cache" / "threads.json").read_text()) == {"threads": 3}
    monkeypatch.setattr(machine, "measured_threads", lambda: 1)
    assert machine_of(recipe, tmp_path).threads == 3
    assert machine_of(recipe).threads == 1


@pytest.fixture
def elsewhere(monkeypatch) -> Machine:
    """The meta device, whose tensors refuse to meet the CPU's in one operation, as a GPU's do.

    They have no values: what copies them to the CPU gets zeros, so that whole computations run.
    """

    def copied(to):
        def copy(tensor, *arguments, **named):
            return to(torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor, *arguments, **named)

        return copy

    for name in ("cpu", "tolist", "item", "numpy", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, copied(getattr(torch.Tensor, name)))
    original = torch.Tensor.to

    def moved(tensor, *arguments, **named):
        to_cpu = "cpu" in (named.get("device"), *map(str, arguments))
        return original(
            torch.zeros_like(tensor, device="cpu") if tensor.is_meta and to_cpu else tensor, *arguments, **named
        )

    monkeypatch.setattr(torch.Tensor, "to", moved)
    return Machine("meta")


@pytest.fixture
def moved(elsewhere, tiny_bert, text_data):
    """Base, two tasks and two adapters, with the base on the other device."""
    recipe = load_recipe_of(recipe_for(tiny_bert, text_data))
    here = load_base(recipe.base)
    tasks = [load_task(task, here, 0) for task in recipe.tasks[:2]]
    sites = [f"encoder.layer.{i}.attention.self.query" for i in (0, 1)]
    shapes = dict.fromkeys(sites, tuple(here.backbone.get_submodule(sites[0]).weight.shape))
    drawn = {task.name: lora(i + 1, 2, shapes=shapes, initial=False) for i, task in enumerate(tasks)}
    about = {"base": BaseInfo(model=recipe.base.model, fingerprint=here.fingerprint)}
    adapters = {n: replace(a, metadata=a.metadata.model_copy(update=about)) for n, a in drawn.items()}
    base = load_base(recipe.base, elsewhere)
    assert next(base.backbone.parameters()).is_meta
    return base, tasks, adapters


def tangent(adapter: Adapter) -> Adapter:
    return replace(adapter, metadata=adapter.metadata.model_copy(update={"linearize": "model", "train": "tangent"}))


def test_the_guard_notices_a_batch_that_stays_behind(moved):
    base, (task, _), _ = moved
    model = TaskModel(base.backbone, task, base)
    _, batch = task.splits["test"].batches(4, model.collator)[0]
    with pytest.raises((RuntimeError, NotImplementedError)):
        model(**batch)


@pytest.mark.parametrize("linearize", [False, True])
def test_scoring_follows_the_base(moved, linearize):
    base, tasks, adapters = moved
    adapter = tangent(adapters["plain"]) if linearize else adapters["plain"]
    results = evaluate(adapter, base, tasks)
    assert set(results) == {task.name for task in tasks}


def test_searches_by_gradients_follow_the_base(moved):
    base, tasks, adapters = moved
    logits = ForwardLogits(base, tasks, "validation", adapters)
    coefficients = torch.full(logits.shape, 0.3, device=base.machine.torch_device, requires_grad=True)
    for part in logits(coefficients, {task.name: [0, 1] for task in tasks}):
        assert all(answers.logits.is_meta for answers in part.values())


@pytest.mark.parametrize("kinds", [["gram"], ["fisher"]])
def test_statistics_follow_the_base(moved, kinds):
    base, (task, _), adapters = moved
    found = collect_statistics(base, task, adapters["plain"], kinds=kinds, rows=4)
    assert found.about.rows == 4


@pytest.mark.parametrize("made", [make_columns, site_columns])
def test_columns_follow_the_base_and_come_to_the_cpu(moved, made):
    base, (task, _), adapters = moved
    columns = made(base, task, "validation", adapters)
    assert columns.columns.device.type == columns.origin.device.type == "cpu"
    assert len(columns.labels) == len(task.splits["validation"])


def test_prediction_follows_the_base(moved):
    base, (task, _), adapters = moved
    assert len(predict(adapters["plain"], base, task, ["a red one", "this is blue"])) == 2


def test_training_follows_the_base(moved):
    base, tasks, _ = moved
    config = load_recipe_of(recipe_for("base", "data")).finetune_config("lora")
    assert len(finetune(base, tasks[0], config).updates) == 4  # query and value of two layers


def test_distillation_follows_the_base(moved):
    base, tasks, adapters = moved
    config = load_recipe_of(recipe_for("base", "data")).finetune_config("lora")
    student = distill(base, tasks, tangent(adapters["plain"]), config, rows=4)
    assert student.metadata.distilled.rows == 8
