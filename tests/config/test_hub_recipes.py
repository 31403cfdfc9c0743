"""The two Hub recipes end to end, offline: tiny checkpoints of the same classes, tiny data with the same columns."""

from __future__ import annotations

import csv

import datasets
import numpy as np
import pytest
import yaml

import tangora
from tangora.config.recipe import load_recipe

VISION = ["stanford_cars", "dtd", "eurosat", "gtsrb", "resisc45", "sun397", "svhn"]
GLUE = {
    "cola": (["sentence"], ["unacceptable", "acceptable"], ["train", "validation", "test"]),
    "mnli": (["premise", "hypothesis"], ["entailment", "neutral", "contradiction"], ["train", "validation_matched"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"], ["train", "validation", "test"]),
    "qqp": (["question1", "question2"], ["not_duplicate", "duplicate"], ["train", "validation", "test"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"], ["train", "validation", "test"]),
    "sst2": (["sentence"], ["negative", "positive"], ["train", "validation", "test"]),
    "stsb": (["sentence1", "sentence2"], None, ["train", "validation", "test"]),
}
TEXT = "red green blue one two three good bad great poor sky grass fire sea yes no"
WORDS = TEXT.split()


def publish(folder, config, splits):
    """A data set repository on disk, as the Hub serves them: parquet files and a card that names the configuration."""
    files = []
    for split, data in splits.items():
        path = folder / config / f"{split}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        data.to_parquet(path)
        files.append({"split": split, "path": f"{config}/{split}.parquet"})
    card = folder / "README.md"
    known = yaml.safe_load(card.read_text().split("---")[1])["configs"] if card.exists() else []
    known.append({"config_name": config, "data_files": files})
    card.write_text("---\n" + yaml.safe_dump({"configs": known}) + "---\n")


def pictures(rows, classes, seed):
    rng = np.random.default_rng(seed)
    labels = [i % classes for i in range(rows)]
    arrays = [rng.integers(0, 255, (24, 28, 3), dtype=np.uint8) for _ in labels]
    names = datasets.ClassLabel(names=["red", "green", "blue"][:classes])
    features = datasets.Features({"image": datasets.Image(), "label": names})
    return datasets.Dataset.from_dict({"image": arrays, "label": labels}, features=features)


def sentences(rows, columns, names, seed):
    rng = np.random.default_rng(seed)
    made = {c: [" ".join(rng.choice(WORDS, 4)) for _ in range(rows)] for c in columns}
    if names is None:
        made["label"] = [float(x) for x in rng.uniform(0, 5, rows)]
        return datasets.Dataset.from_dict(made)
    made["label"] = [i % len(names) for i in range(rows)]
    features = datasets.Features(
        {**dict.fromkeys(columns, datasets.Value("string")), "label": datasets.ClassLabel(names=names)}
    )
    return datasets.Dataset.from_dict(made, features=features)


def small(**more):
    settings = {
        "training.steps": 1,
        "training.batch_size": 4,
        "training.workers": 0,
        "modes.full.training.learning_rate": 1e-3,
        "fusion.subsets": "{sizes: [2, 7], per_size: 1}",
        "fusion.methods": "[{method: task_arithmetic, weights: [0.3, 0.6]}, "
        "{method: average, spaces: [factors], modes: [lora, l-lora]}]",
        "evaluation.bootstrap": 100,
        **more,
    }
    return [f"{key}={value}" for key, value in settings.items()]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def check(run, tasks, metrics):
    with (run / "scores.csv").open() as file:
        table = list(csv.DictReader(file))
    assert {r["task"] for r in table} == {*tasks, "mean", "mean_all"}
    assert {r["mode"] for r in table} == {"-", "full", "lora", "l-lora"}
    assert {r["metric"] for r in table if not r["task"].startswith("mean")} == metrics
    assert max(int(r["n_tasks"]) for r in table) == 7
    assert (run / "report.html").is_file()


@pytest.mark.slow
def test_clip_vit_b16_vision7(tiny_clip, tmp_path):
    hub = tmp_path / "hub"
    settings = small(**{"base.model": tiny_clip})
    for i, name in enumerate(VISION):
        config = "cropped_digits" if name == "svhn" else "default"
        classes = 2 + i % 2
        publish(hub / name, config, {"train": pictures(12, classes, i), "test": pictures(6, classes, 50 + i)})
        settings += [f"tasks.{name}.source.hub={hub / name}", f"tasks.{name}.limit.validation=4"]
    recipe = load_recipe("clip-vit-b16-vision7", settings)
    assert recipe.lora.target_modules == ["q_proj", "v_proj"]
    run = tangora.run(recipe, tmp_path / "run")
    check(run, VISION, {"accuracy"})
    sites = set(tangora.load(run / "adapters" / "lora" / "dtd").updates)
    assert {s.rsplit(".", 1)[1] for s in sites} == {"q_proj", "v_proj"}, "both are adapted"
    assert len(sites) == 2 * 2
    assert all("vision_model" in s or "encoder" in s for s in sites)


@pytest.mark.slow
def test_flan_t5_base_glue7(tiny_t5, tmp_path):
    hub = tmp_path / "glue"
    settings = small(
        **{"base.model": tiny_t5, "base.max_new_tokens": 16, "modes.lora.training": "{learning_rate: 0.01}"}
    )
    for i, (name, (columns, names, splits)) in enumerate(GLUE.items()):
        publish(hub, name, {s: sentences(12, columns, names, 10 * i + k) for k, s in enumerate(splits)})
        settings += [f"tasks.{name}.source.hub={hub}", f"tasks.{name}.limit.validation=4"]
    run = tangora.run(load_recipe("flan-t5-base-glue7", settings), tmp_path / "run")
    check(run, list(GLUE), {"exact_match", "spearman"})
    sites = set(tangora.load(run / "adapters" / "lora" / "rte").updates)
    assert {s.rsplit(".", 1)[1] for s in sites} == {"q", "v"}
    assert any(".EncDecAttention." in s for s in sites), "the paper adapts cross attention too"
