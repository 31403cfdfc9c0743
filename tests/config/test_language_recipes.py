"""The recipes of language models end to end, offline: a tiny decoder, tiny data with the same columns."""

from __future__ import annotations

import csv

import datasets
import pytest
from test_hub_recipes import publish

import tangora
import tiny
from tangora.config.recipe import load_recipe

GEN = ["scan", "e2e", "snips_slots", "wikisql", "disfl_qa", "math_expr", "en_fr"]
NLI = {
    "mnli": (["premise", "hypothesis"], 3, ["train", "validation_matched"]),
    "qnli": (["question", "sentence"], 2, ["train", "validation"]),
    "rte": (["sentence1", "sentence2"], 2, ["train", "validation"]),
    "wnli": (["sentence1", "sentence2"], 2, ["train", "validation"]),
    "cb": (["premise", "hypothesis"], 3, ["train", "validation"]),
    "anli": (["premise", "hypothesis"], 3, ["train_r3", "dev_r3", "test_r3"]),
}
POLISHED = (
    "[{method: task_arithmetic, weights: [0.5]}, {method: task_arithmetic, name: polished, weights: [0.5], "
    "polish: {rank: 4, rows: 4, steps: 1, batch_size: 1}}]"
)


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("decoder"), length=256)


def small(tasks, **more):
    settings = {
        "training": "{steps: 1, batch_size: 2}",
        "base.max_length": 256,
        "base.max_new_tokens": 12,
        "fusion.subsets": "{sizes: [2], per_size: 1}",
        "fusion.methods": POLISHED,
        "evaluation.bootstrap": 100,
        **{f"tasks.{name}.limit": "{train: 8, validation: 2, test: 2}" for name in tasks},
        **more,
    }
    return [f"{key}={value}" for key, value in settings.items()]


def table(run):
    with (run / "scores.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_gen7(decoder, tmp_path):
    for name in GEN:
        tiny.sums(tmp_path / "data" / name, train=12, test=4)
    settings = small(GEN, **{"base.model": decoder, "data.root": tmp_path / "data", "modes": "{lora: {}}"})
    rows = table(tangora.run(load_recipe("gen7", settings), tmp_path / "run"))
    assert {row["task"] for row in rows} >= set(GEN)
    assert {row["metric"] for row in rows} >= {"edit_similarity", "bleu", "json_equal", "numeric", "chrf"}
    assert "polished" in {row["method"] for row in rows}


def entailments(rows, columns, classes, seed):
    words = ["red", "green", "blue", "one", "two", "three", "good", "bad"]
    made = {c: [" ".join(words[(i + seed + k) % 8] for k in range(3)) for i in range(rows)] for c in columns}
    names = datasets.ClassLabel(names=[f"class {i}" for i in range(classes)])
    features = datasets.Features({**dict.fromkeys(columns, datasets.Value("string")), "label": names})
    return datasets.Dataset.from_dict({**made, "label": [i % classes for i in range(rows)]}, features=features)


def test_llama3_nli6(decoder, tmp_path):
    settings = small(NLI, **{"base.model": decoder, "modes.l-lora": "{linearize: module, lora: {r: 2}}"})
    for seed, (name, (columns, classes, splits)) in enumerate(NLI.items()):
        hub = tmp_path / name
        config = "plain_text" if name == "anli" else name
        publish(hub, config, {split: entailments(12, columns, classes, seed + k) for k, split in enumerate(splits)})
        settings.append(f"tasks.{name}.source.hub={hub}")
    settings.append("tasks.mnli.source.splits={train: train, test: validation_matched}")
    settings.append("tasks.qnli.source.splits={train: train, test: validation}")
    rows = table(tangora.run(load_recipe("llama3-nli6", settings), tmp_path / "run"))
    assert {row["task"] for row in rows} >= set(NLI)
    assert {row["metric"] for row in rows if row["task"] in NLI} == {"accuracy"}


def test_qwen3_skills(decoder, tmp_path):
    data = {
        "math": lambda i: {"question": f"1+{i}?", "answer": f"It is {i + 1}. #### {i + 1}"},
        "sql": lambda i: {"context": f"t (a{i})", "question": "all?", "answer": f"SELECT a{i}"},
        "french": lambda i: {"translation": {"en": f"yes {i}", "fr": f"oui {i}"}},
    }
    settings = small(data, **{"base.model": decoder, "base.max_new_tokens": 40})
    for name, row in data.items():
        numbers = {"train": range(8), "test": range(8, 12)}
        parts = {split: datasets.Dataset.from_list([row(i) for i in of]) for split, of in numbers.items()}
        publish(tmp_path / name, "main", parts)
        settings.append(f"tasks.{name}.source={{hub: '{tmp_path / name}', config: main}}")
    rows = table(tangora.run(load_recipe("qwen3-skills", settings), tmp_path / "run"))
    assert {row["metric"] for row in rows if row["task"] in data} >= {"numeric", "exact_match_casefold", "chrf"}
