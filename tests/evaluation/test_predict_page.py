"""The blocks of docs/predict.md run, in order, in a folder like the reader's; each line of a console in a process."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

import tangora
import tangora.cli.predict  # here, so that every forked process has it
import tiny
from forks import in_fork, status_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks processes that have imported torch")

PAGE = (Path(__file__).parents[2] / "docs" / "predict.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LINES = [line for block in re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
TASKS = {"reviews": ["bad", "good"], "topics": ["sky", "grass", "fire"]}


def furnish(folder: Path) -> None:
    """A base, two adapters and their fusion, a tangent adapter with its recipe, and a file of rows."""
    tiny.bert(folder / "encoder")
    base = tangora.load_base("encoder", family="text-zero-shot", max_length=16)
    sources = {}
    for name, labels in TASKS.items():
        for split, count in (("train", 12), ("test", 6)):
            rows = [(f"this is a photo of {label}", label) for label in labels for _ in range(count // len(labels))]
            text = "\n".join(["text,label", *(",".join(row) for row in rows)])
            (folder / f"{name}-{split}.csv").write_text(f"{text}\n", encoding="utf-8")
        sources[name] = {split: f"{name}-{split}.csv" for split in ("train", "test")}
        task = tangora.load_task(name, base, sources[name], labels=labels)
        config = tangora.FinetuneConfig(lora={"r": 2}, training={"steps": 2, "batch_size": 4})
        tangora.finetune(base, task, config, out=folder / "adapters" / name, progress=False)
        if name == "reviews":
            tangent = config.model_copy(update={"mode": "tangent", "train": "tangent"})
            tangora.finetune(base, task, tangent, out=folder / "adapters" / "tangent", progress=False)
    tangora.fuse(["adapters/reviews", "adapters/topics"], weights=0.5).save("fused")
    tasks = [{"name": name, "source": {"csv": sources[name]}, "labels": labels} for name, labels in TASKS.items()]
    recipe = {
        "name": "page",
        "base": {"family": "text-zero-shot", "model": "encoder", "max_length": 16},
        "tasks": tasks,
    }
    recipe |= {"fusion": {"methods": [{"method": "average"}]}, "modes": {"tangent": {"train": "tangent"}}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (folder / "rows.csv").write_text("id,text\n007,a photo of fire\n008,grass that is green\n", encoding="utf-8")


def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    assert (len(BLOCKS), len(LINES)) == (3, 7)
    for line in LINES:
        assert line.startswith("$ tangora ")
        assert in_fork(lambda line=line: status_of(line)) == 0, line
    with (tmp_path / "answers.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["007", "008"]
    assert {row["answer"] for row in rows} <= set(TASKS["topics"])
    first = json.loads((tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["probability_bad"] + first["probability_good"] == pytest.approx(1, abs=1e-6)
    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    assert set(names["answers"]) <= set(TASKS["reviews"])
    assert names["logits"].shape == (2, 2)
