"""A family with a trained head and a metric of other packages, through a whole run."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import plugins
import tangora
from tangora.adapters.adapter import load
from tangora.adapters.heads import heads_digest, read_heads, read_records
from tangora.config.recipe import FinetuneConfig, Recipe, load_recipe
from tangora.errors import AdapterError, RecipeError
from tangora.evaluation.evaluator import evaluate, scoring_code
from tangora.evaluation.results import rank_kept
from tangora.progress import Progress
from tangora.runs.context import Context
from tangora.runs.preflight import preflight
from tangora.runs.runner import missing
from tangora.support.seams import FAMILIES, METRICS
from tangora.support.source import source_digest
from tangora.support.validation import validate
from tangora.tasks import load_base, load_task, make_readout
from tangora.testing import check_family, check_metric


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The plug-ins, installed and found for the length of this module."""
    folder = plugins.install(tmp_path_factory.mktemp("site"), "family", "metric")
    with plugins.installed(folder, FAMILIES, METRICS):
        yield folder


@pytest.fixture(scope="module")
def raw(site, tiny_bert, text_data):
    """A recipe of two tasks that a head has to be trained for: labels without names, and names that say nothing."""
    files = {"parquet": {split: str(text_data / f"{split}.parquet") for split in ("train", "test")}}
    return {
        "name": "heads",
        "base": {"family": "linear-head", "model": str(tiny_bert), "pooling": "mean", "max_length": 16},
        "tasks": [
            {"name": "number", "source": files, "label": "grade", "metrics": ["balanced_error", "accuracy"]},
            {"name": "letter", "source": files, "labels": ["a", "b", "c"]},
        ],
        "lora": {"r": 2, "target_modules": ["query", "value"]},
        "training": {"steps": 30, "batch_size": 16, "learning_rate": 0.02, "checkpoint_every": 10},
        "modes": {"lora": {}, "l-lora": {"linearize": "module"}, "tangent": {"linearize": "model"}},
        "fusion": {
            "methods": [
                {"method": "average"},
                {"method": "task_arithmetic", "weights": [0.3, 1.0]},
                {"method": "fisher", "modes": ["lora"]},
                {"method": "task_arithmetic", "search": "convex", "modes": ["tangent"]},
                {"method": "task_arithmetic", "search": "learned", "steps": 2, "modes": ["lora"], "name": "learned"},
            ],
            "statistics": {"rows": 8},
        },
        "evaluation": {"bootstrap": 100},
    }


@pytest.fixture(scope="module")
def run(raw, tmp_path_factory):
    """The run's folder, and its recipe."""
    recipe = validate(Recipe, raw, "test")
    return tangora.run(recipe, tmp_path_factory.mktemp("runs") / "heads"), recipe


@pytest.fixture(scope="module")
def bench(run):
    """Base and tasks, loaded again."""
    base = load_base(run[1].base)
    return base, [load_task(task, base, run[1].seed) for task in run[1].tasks]


def scores(folder, split="test", **where):
    """(task, metric) -> score on the rows of a split."""
    with (folder / "scores.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["split"] == split and not r["task"].startswith("mean")]
    return {(r["task"], r["metric"]): float(r["score"]) for r in rows if all(r[k] == v for k, v in where.items())}


def test_the_contracts_hold(raw):
    base = {k: v for k, v in raw["base"].items() if k != "family"}
    check_family(FAMILIES.get("linear-head"), base, raw["tasks"][1])
    check_metric(METRICS.get("balanced_error"))


def test_the_family_reads_its_own_settings(raw, tmp_path):
    recipe = validate(Recipe, raw, "test")
    assert recipe.base.max_length == 16
    (tmp_path / "again.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "again.yaml") == recipe
    with pytest.raises(RecipeError, match=r"unknown key 'templates' at tasks\.0\.templates .*Valid: name, source"):
        validate(Recipe, raw | {"tasks": [raw["tasks"][0] | {"templates": ["{}"]}]}, "test")
    with pytest.raises(RecipeError, match=r"unknown key 'scale' at base\.scale"):
        validate(Recipe, raw | {"base": raw["base"] | {"scale": 3}}, "test")


@pytest.mark.parametrize("mode", ["lora", "l-lora", "tangent"])
def test_heads_are_trained_and_travel(run, mode):
    folder = run[0] / "adapters" / mode / "number"
    record = json.loads((folder / "heads" / "number.json").read_text())
    assert (record["family"], record["labels"]) == ("linear-head", ["0.5", "1.5", "2.5"])
    held = {"weights_dtype": "float32", "quantization": None}
    assert record["base"] == {"pooling": "mean", "max_length": 16, **held}
    assert record["task"]["text"] == "text"
    fused = load(run[0] / "fused" / mode / "average")
    assert set(fused.heads) == set(fused.records) == {"number", "letter"}
    own = load(folder).heads["number"]
    assert own["linear.weight"].any(), "trained from zero"
    for name, values in own.items():
        assert torch.equal(values, fused.heads["number"][name]), "a fusion holds the heads as they are"
    mine = scores(run[0], mode=mode, method="expert", subset="number")
    assert mine["number", "accuracy"] > 0.8
    assert mine["number", "balanced_error"] == pytest.approx(1 - mine["number", "accuracy"], abs=1e-6), "equal classes"
    assert mine["letter", "accuracy"] == pytest.approx(1 / 3, abs=1e-6), "the head of another task is not trained"


@pytest.mark.parametrize("mode", ["lora", "l-lora", "tangent"])
def test_scores_reproduce_after_loading(run, bench, mode):
    base, tasks = bench
    for where, adapter in (
        ({"method": "expert", "subset": "letter"}, run[0] / "adapters" / mode / "letter"),
        ({"method": "average"}, run[0] / "fused" / mode / "average"),
    ):
        written = scores(run[0], mode=mode, **where)
        for task, result in evaluate(load(adapter), base, tasks).items():
            metric = "balanced_error" if task == "number" else "accuracy"
            assert written[task, metric] == pytest.approx(result.score, abs=1e-6), (where, task)


def test_the_candidate_is_chosen_by_what_is_kept_of_errors(run):
    metrics = {"number": "balanced_error", "letter": "accuracy"}
    experts = {
        task: scores(run[0], mode="lora", method="expert", subset=task, split="validation")[task, metric]
        for task, metric in metrics.items()
    }
    tried: dict[str, dict[str, float]] = {}
    with (run[0] / "candidates.csv").open() as file:
        for row in csv.DictReader(file):
            if (row["mode"], row["method"]) == ("lora", "task_arithmetic"):
                tried.setdefault(row["weights"], {})[row["task"]] = float(row["score"])
    assert len(tried) == 2
    ranks = {weights: rank_kept(found, experts, metrics) for weights, found in tried.items()}
    with (run[0] / "scores.csv").open() as file:
        chosen = {
            r["coefficients"] for r in csv.DictReader(file) if (r["mode"], r["method"]) == ("lora", "task_arithmetic")
        }
    assert [json.loads(text)["weights"] for text in chosen] == [json.loads(max(ranks, key=ranks.__getitem__))]
    assert (run[0] / "report.html").is_file()
    page = (run[0] / "explorer-tangent.html").read_text()
    assert "number is scored by accuracy on this page, which cannot compute balanced_error." in page
    assert "left out" not in page


def test_a_head_that_changed_is_noticed_by_everything_that_reads_it(run, tmp_path, monkeypatch):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    before = {path.name for path in (copy / "cache" / "searches").iterdir()}
    path = copy / "adapters" / "lora" / "number" / "heads" / "number.safetensors"
    save_file({name: -values for name, values in load_file(path).items()}, path)
    left = missing(Context.open(copy))
    assert {job.kind for job in left} == {"statistics", "expert-scores", "fusion-scores", "tables", "fused", "report"}
    assert {job.mode for job in left if hasattr(job, "mode")} == {"lora"}
    assert [job.tasks for job in left if job.kind == "statistics"] == [("number",)]
    monkeypatch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
    tangora.run(run[1], copy)
    fused = load(copy / "fused" / "lora" / "average")
    assert torch.equal(fused.heads["number"]["linear.weight"], load_file(path)["linear.weight"])
    expert = {"mode": "lora", "method": "expert", "subset": "number"}
    assert scores(copy, **expert)["number", "accuracy"] < scores(run[0], **expert)["number", "accuracy"]
    after = {path.name for path in (copy / "cache" / "searches").iterdir()}
    assert len(after - before) == 1, "learned searched again; convex reads the heads of another mode"


def test_how_an_expert_predicts_is_part_of_its_result(run, tmp_path):
    copy = shutil.copytree(run[0], tmp_path / "copy")
    path = copy / "adapters" / "lora" / "letter" / "heads" / "letter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"labels": ["x", "y", "z"]}))
    assert "fused" in {job.kind for job in missing(Context.open(copy))}


@pytest.mark.parametrize("metrics", [["balanced_error", "accuracy"], ["accuracy", "balanced_error"]])
def test_the_code_of_every_metric_is_in_the_key_of_the_tables(raw, run, monkeypatch, metrics):
    recipe = validate(Recipe, raw | {"tasks": [raw["tasks"][0] | {"metrics": metrics}, raw["tasks"][1]]}, "test")

    def key():
        scoring_code.cache_clear()
        context = Context(run[0], recipe)
        context.sources = Context.open(run[0]).sources
        return next(job.key for job in context.plan if job.kind == "tables")

    def changed(*things, **options):
        return "changed" if METRICS.get("balanced_error") in things else source_digest(*things, **options)

    before = key()
    assert before == key()
    monkeypatch.setattr("tangora.evaluation.evaluator.source_digest", changed)
    assert before != key()
    scoring_code.cache_clear()


def test_a_head_for_other_classes_is_refused(run, bench):
    base, tasks = bench
    adapter = load(run[0] / "adapters" / "lora" / "letter")
    other = tasks[1].__class__(**{**vars(tasks[1]), "labels": ["b", "a", "c"]})
    with pytest.raises(
        AdapterError, match=r"the head was trained for the classes a, b, c, in this order, got \['b', 'a', 'c'\]"
    ):
        make_readout(other, base, adapter)
    again = load(run[0] / "adapters" / "l-lora" / "letter")
    with pytest.raises(AdapterError, match="two adapters have different heads for one task, got 'letter'"):
        make_readout(tasks[1], base, adapter, again)


def test_a_dry_run_counts_the_heads(raw, run, tmp_path):
    raw = raw | {"modes": {**raw["modes"], "full": {"train": "full"}}}
    recipe = validate(Recipe, raw, "test")
    planned = {mode.mode: mode for mode in preflight(recipe, tmp_path / "planned", Progress()).modes}
    for mode in run[1].modes:
        training = json.loads((run[0] / "adapters" / mode / "letter" / "training.json").read_text())
        assert planned[mode].trainable == (training["trainable"], training["trainable"]), mode
    weights = (run[0] / "adapters" / "lora" / "letter").rglob("*.safetensors")
    numbers = sum(value.numel() for path in weights for value in load_file(path).values())
    assert planned["lora"].size == 2 * 4 * numbers
    source = {"jsonl": {split: str(tmp_path / f"{split}.jsonl") for split in ("train", "test")}}
    for split, count in (("train", 12), ("test", 8)):
        rows = "".join(json.dumps({"text": f"{split} {i}", "label": i % 2}) + "\n" for i in range(count))
        (tmp_path / f"{split}.jsonl").write_text(rows)
    fewer = raw | {"tasks": [raw["tasks"][0], {"name": "letter", "source": source, "labels": ["a", "b"]}]}
    first, *_ = preflight(validate(Recipe, fewer, "test"), tmp_path / "planned", Progress()).modes
    low, high = first.trainable
    assert high - low == load_base(recipe.base).backbone.config.hidden_size + 1, "a class less"


def written_beside(folder):
    """The content of ``heads/``: parameters, and records."""
    return heads_digest(read_heads(folder)), read_records(folder)


def test_a_checkpoint_has_beside_it_what_prediction_by_the_heads_needs(run, tmp_path):
    adapters, base = run[0] / "adapters" / "lora", run[1].base.model
    tangora.fuse_checkpoints(base, [adapters / "number", adapters / "letter"], tmp_path / "merged", weights=0.5)
    heads, records = written_beside(tmp_path / "merged")
    assert heads == heads_digest(load(run[0] / "fused" / "lora" / "average").heads)
    assert set(records) == {"letter", "number"}
    for task in ("number", "letter"):
        assert records[task] == read_records(adapters / task)[task]
    tangora.fuse_checkpoints(base, [adapters / "letter"], tmp_path / "one", weights=1.0, space="factors")
    assert written_beside(tmp_path / "one") == written_beside(adapters / "letter")


def test_full_fine_tuning_writes_it_and_so_does_its_merge(run, bench, tmp_path):
    base, tasks = bench
    config = FinetuneConfig(mode="full", train="full", training={"steps": 2, "batch_size": 4}).resolved()
    tangora.finetune(base, tasks[1], config, out=tmp_path / "full")
    heads, records = written_beside(tmp_path / "full")
    assert heads
    assert records["letter"].labels == ["a", "b", "c"]
    tangora.fuse_checkpoints(run[1].base.model, [tmp_path / "full"], tmp_path / "merged", weights=1.0)
    assert written_beside(tmp_path / "merged") == (heads, records)


def test_a_student_takes_the_heads_of_its_teacher(run, bench, tmp_path):
    base, tasks = bench
    config = run[1].finetune_config("lora")
    short = config.model_copy(update={"training": config.training.model_copy(update={"steps": 3})})
    teacher = load(run[0] / "fused" / "tangent" / "average")
    student = tangora.distill(base, tasks, teacher, short, rows=12, out=tmp_path / "student")
    assert set(load(tmp_path / "student").heads) == set(student.heads) == {"number", "letter"}
    assert torch.equal(student.heads["letter"]["linear.bias"], teacher.heads["letter"]["linear.bias"])
