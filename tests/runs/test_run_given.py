"""A run whose experts are existing adapters of stock peft, of different ranks, layers, scalings and names."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch

import tangora
from loras import peft_lora
from tangora.adapters.adapter import load
from tangora.config.recipe import Recipe, load_run_recipe
from tangora.errors import AdapterError, FileError, ModelError, RecipeError
from tangora.runs.context import Context
from tangora.runs.preflight import preflight
from tangora.runs.runner import missing
from tangora.runs.runner import run as run_recipe
from tangora.support.validation import validate
from workshop import done

METHODS = [
    {"method": "task_arithmetic", "weights": [0.5, 1.0]},
    {"method": "task_arithmetic", "search": "learned", "labels": 2, "steps": 2},
    {"method": "task_arithmetic", "name": "polished", "weights": [0.5],
     "polish": {"rank": 3, "rows": 4, "steps": 2, "batch_size": 2, "evaluate_every": 1, "learning_rate": 0.01}},
    {"method": "arrow"},
    {"method": "regmean"},
]  # fmt: skip


@pytest.fixture(scope="module")
def adapters(tiny_llama, tmp_path_factory):
    """Three conventions: a plain one; one of the bare model with rsLoRA on other layers; one with a rank pattern."""
    folder = tmp_path_factory.mktemp("given")
    peft_lora(tiny_llama, folder / "plain", r=2, seed=1)
    peft_lora(tiny_llama, folder / "bare", r=4, targets=("up_proj",), seed=2, bare=True, use_rslora=True)
    peft_lora(
        tiny_llama, folder / "pattern", r=1, targets=("q_proj", "o_proj"), seed=3, rank_pattern={"o_proj": 3},
        name="elsewhere/llama",
    )  # fmt: skip
    return folder


def recipe_of(model, data, experts, methods=(), names=("plain", "bare", "pattern"), **mode):
    files = {split: f"{data}/{split}.jsonl" for split in ("train", "test")}
    task = {"source": {"jsonl": files}, "limit": {"train": 8, "validation": 4, "test": 4}}
    raw = {
        "name": "given",
        "base": {"family": "causal-lm", "model": str(model), "max_length": 64, "max_new_tokens": 4},
        "tasks": [{"name": name, **task} for name in names],
        "lora": {"r": 2, "target_modules": ["down_proj"]},
        "training": {"steps": 2, "batch_size": 2},
        "modes": {"mine": {"experts": {name: str(path) for name, path in experts.items()}, **mode}},
        "fusion": {"subsets": {"sizes": [max(2, len(names))]}, "methods": list(methods) or [{"method": "average"}]},
        "evaluation": {"bootstrap": 100},
    }
    return validate(Recipe, raw, "test")


def of(adapters, *names):
    return {name: adapters / name for name in names or ("plain", "bare", "pattern")}


@pytest.fixture(scope="module")
def finished(tiny_llama, sum_data, adapters, tmp_path_factory):
    llama = tmp_path_factory.mktemp("bases") / "llama"
    shutil.copytree(tiny_llama, llama)
    recipe = recipe_of(llama, sum_data, of(adapters), METHODS, same_base=True)
    return run_recipe(recipe, tmp_path_factory.mktemp("runs") / "run")


def scores(run):
    with (run / "scores.csv").open() as file:
        return list(csv.DictReader(file))


def test_experts_fusions_searches_polishes_and_routers_are_scored(finished):
    found = {row["method"] for row in scores(finished) if row["mode"] == "mine"}
    assert found == {"expert", "task_arithmetic", "learned", "polished", "arrow", "regmean"}


def test_the_fused_adapter_is_the_float64_sum_of_what_stock_peft_computes(finished, tiny_llama, adapters):
    """Logits of the run's fusion against the base with W + λ Σ s·BA, summed in float64 from peft's own files."""
    import peft
    import transformers

    fused = load(finished / "fused" / "mine" / "task_arithmetic")
    lam = fused.metadata.fused.weights[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    total = {name: torch.zeros_like(value) for name, value in before.items()}
    for name in ("plain", "bare", "pattern"):
        kind = transformers.AutoModel if name == "bare" else transformers.AutoModelForCausalLM
        plain = kind.from_pretrained(tiny_llama).double()
        merged = peft.PeftModel.from_pretrained(plain, adapters / name).double().merge_and_unload().state_dict()
        prefix = "model." if name == "bare" else ""
        for key, value in merged.items():
            total[prefix + key] += value - before[prefix + key]
    model.load_state_dict({name: before[name] + lam * total[name] for name in before})
    ids = torch.arange(3, 19)[None]
    wanted = model(ids).logits
    ours = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tiny_llama), finished / "fused" / "mine" / "task_arithmetic"
    ).double()
    # float32 factors: one rounding of each number, relative 6e-8; far below any wrong scaling or missing site
    assert torch.allclose(ours(ids).logits, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
    assert not torch.allclose(
        wanted, transformers.AutoModelForCausalLM.from_pretrained(tiny_llama).double()(ids).logits
    )


def test_a_copy_has_the_record_of_its_task_and_says_nothing_of_a_training(finished, adapters):
    copy = load(finished / "adapters" / "mine" / "bare")
    assert copy.metadata.task == "bare"
    assert set(copy.records) == {"bare"}
    assert not (finished / "adapters" / "mine" / "bare" / "training.json").exists()
    assert all(site.startswith("model.layers") for site in copy.updates)
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "were given, and not trained by this run" in page
    assert "unknown: adapters were given" in page, "the table of ways, since there is a router"


def test_a_resumed_run_does_nothing_also_without_the_original_files(finished, adapters, tmp_path, caplog):
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    recipe = load_run_recipe(copy)
    assert not missing(Context(copy, recipe))
    moved = shutil.copytree(adapters, tmp_path / "adapters")
    other = recipe_of_with(recipe, of(moved))
    run = recipe_copy(copy, other)
    assert {type(job).__name__ for job in missing(run)} <= {"ReportJob"}, "the same content in another place"
    shutil.rmtree(moved)
    context = Context(copy, other)
    context.sources.write(copy, other)
    context.load()
    assert "the run has a copy" in caplog.text


def recipe_of_with(recipe, experts):
    mode = recipe.modes["mine"].model_copy(update={"experts": {n: str(p) for n, p in experts.items()}})
    return recipe.model_copy(update={"modes": {"mine": mode}})


def recipe_copy(folder, recipe):
    context = Context(folder, recipe)
    context.load().write(folder, recipe)
    return context


def test_another_adapter_under_the_same_name_is_another_expert(finished, tiny_llama, adapters, tmp_path):
    moved = shutil.copytree(adapters, tmp_path / "adapters")
    peft_lora(tiny_llama, moved / "plain", r=2, seed=99)
    context = Context(finished, recipe_of_with(load_run_recipe(finished), of(moved)))
    context.sources = context.load()
    left = missing(context)
    assert [job.label for job in left if job.kind == "given"] == ["mine · plain · given"]
    assert any(job.kind == "fusion-scores" for job in left)


def test_an_adapter_that_changes_while_the_run_works_is_refused(tiny_llama, sum_data, adapters, tmp_path):
    moved = shutil.copytree(adapters, tmp_path / "adapters")
    recipe = recipe_of(tiny_llama, sum_data, of(moved), same_base=True)
    context = Context(tmp_path / "run", recipe)
    job = next(job for job in context.plan if job.kind == "given")
    peft_lora(tiny_llama, moved / "plain", r=2, seed=99)
    with pytest.raises(AdapterError, match="changed since the run was planned"):
        job.run(context)
    assert not (tmp_path / "run" / "adapters" / "mine" / "plain").exists()


def test_tasks_without_a_given_expert_are_trained(tiny_llama, sum_data, adapters, tmp_path):
    recipe = recipe_of(tiny_llama, sum_data, of(adapters, "plain"), names=("plain", "more"))
    plan = preflight(recipe, tmp_path / "run", tangora.progress.Progress())
    (mode,) = plan.modes
    assert (mode.adapters, mode.given, mode.left, mode.steps) == (2, 1, 1, 2)
    run = run_recipe(recipe, tmp_path / "run")
    assert (run / "adapters" / "mine" / "more" / "training.json").is_file()
    sites = [set(load(run / "adapters" / "mine" / name).updates) for name in ("plain", "more")]
    assert not sites[0] & sites[1]


def test_a_dry_run_shows_given_adapters_and_writes_nothing(tiny_llama, sum_data, adapters, tmp_path):
    recipe = recipe_of(tiny_llama, sum_data, of(adapters), same_base=True)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    shown = done("run", file, "--out", tmp_path / "run", "--dry-run").output
    assert "given" in shown
    assert "steps take" not in shown
    assert "memory of mine, estimated: scoring" in shown
    assert not (tmp_path / "run").exists()
    plan = json.loads(done("run", file, "--out", tmp_path / "run", "--dry-run", "--json").stdout)
    assert (plan["modes"][0]["given"], plan["modes"][0]["trainable"]) == (3, [0, 0])
    refused = done_not("finetune", file, "--mode", "mine", "--task", "plain", "--out", tmp_path / "x")
    assert "the expert of this task is given" in refused


def done_not(*arguments):
    from typer.testing import CliRunner

    from tangora.cli import app

    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code != 0
    return f"{result.exception} {result.output}"


@pytest.mark.parametrize(
    ("experts", "error", "message"),
    [
        ({"pattern": "pattern"}, ModelError, "pattern: the adapter was made for elsewhere/llama"),
        ({"plain": "narrow"}, ModelError, r"narrow.* does not fit .*llama.*: the model's weight is \(32, 32\)"),
        ({"plain": "other"}, ModelError, "other.*, which was made for gpt2, does not fit .*: the model has no such"),
        ({"plain": "nowhere"}, FileError, "no such folder"),
        ({"plain": "tangent"}, ModelError, "is an adapter of train: tangent, which answers in another way"),
    ],
    ids=["another base", "another shape", "other layers", "missing", "another mode"],
)
def test_bad_experts_are_refused_with_both_names(
    tiny_llama, sum_data, adapters, bad, tmp_path, experts, error, message
):
    given = {task: (adapters if name == "pattern" else bad) / name for task, name in experts.items()}
    recipe = recipe_of(tiny_llama, sum_data, given, names=(*experts, "more"), same_base="other" in str(given))
    with pytest.raises(error, match=message) as caught:
        Context(tmp_path / "run", recipe).load()
    assert "modes.mine.experts." in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def bad(tiny_llama, tmp_path_factory):
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("bad")
    for name in ("narrow", "other", "tangent"):
        peft_lora(tiny_llama, folder / name, seed=1)
    file = folder / "narrow" / "adapter_model.safetensors"
    save_file({k: v[:, :16].contiguous() if "lora_A" in k else v for k, v in load_file(file).items()}, file)
    file = folder / "other" / "adapter_model.safetensors"
    save_file({k.replace("model.layers", "h"): v for k, v in load_file(file).items()}, file)
    config = folder / "other" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "gpt2"}))
    told = {"format": 1, "linearize": "model", "train": "tangent", "base": {}}
    (folder / "tangent" / "tangora.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": {"plane": "a"}}, "no such task: 'plane'; did you mean 'plain'"),
        ({"experts": {"plain": "a", "bare": "b", "pattern": "c"}, "lora": {"r": 4}}, "nothing is trained: leave lora"),
        ({"experts": {"plain": "a"}, "train": "joint-lora"}, "trains all tasks at once"),
        ({"experts": {}, "same_base": True}, "same_base is for experts that are given"),
        ({"experts": {"plain": ""}}, "at least 1 character"),
    ],
    ids=["unknown task", "idle settings", "joint", "same base of none", "empty"],
)
def test_bad_recipes_are_refused(change, message):
    experts = change.pop("experts")
    with pytest.raises(RecipeError, match=message):
        recipe_of("llama", "data", experts, **change)
