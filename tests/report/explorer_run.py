"""A run with cached logits, made up: what `tangora explore` reads, with plausible interference between tasks."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import torch
from synthetic import COLUMNS

from tangora.config.recipe import Recipe
from tangora.tangent.columns import Columns

CLASSES = {"sst2": 2, "trec6": 6, "ag_news": 4, "tweet_emotion": 4, "snips": 7, "banking77": 77, "sms_spam": 2}
ROWS = {"validation": 60, "test": 90}
TEXT = "the train to Lyon was late again and nobody said why, so we took a taxi </script><img src=x onerror=alert(1)>"


def make_run(
    path: Path, classes: dict[str, int] | None = None, rows: dict[str, int] | None = None, metrics: tuple[str, ...] = ()
) -> Path:
    """Write recipe, scores, columns and the rows of every task under ``path``."""
    classes, rows = classes or CLASSES, rows or ROWS
    generator = torch.Generator().manual_seed(0)
    tasks = []
    for at, (name, count) in enumerate(classes.items()):
        labels = {s: torch.arange(n) % count for s, n in {"train": max(count, 8), **rows}.items()}
        tasks.append(_task(path / "data", name, count, labels, metrics[at] if at < len(metrics) else "accuracy"))
        for split in rows:
            columns = _columns(name, split, list(classes), count, labels[split], generator)
            target = path / "cache" / "columns" / "tangent" / f"{name}-{split}.safetensors"
            target.parent.mkdir(parents=True, exist_ok=True)
            columns.save(target)
    methods = [{"method": "average"}, {"method": "task_arithmetic", "weights": [0.3, 0.5]}]
    methods += [{"method": "ties"}, {"method": "task_arithmetic", "search": "lorahub"}]
    recipe = {"name": "text7", "title": "Seven text tasks", "tasks": tasks, "fusion": {"methods": methods}}
    recipe |= {"base": {"family": "text-zero-shot", "model": "none"}, "modes": {"tangent": {"linearize": "model"}}}
    (path / "recipe.yaml").write_text(Recipe.model_validate(recipe).to_yaml())
    _scores(path / "scores.csv", list(classes))
    return path


def weights(names: list[str]) -> list[float]:
    """What the made-up LoraHub found for a set of tasks."""
    return [round(0.37 + 0.11 * i - 0.013 * len(names), 4) for i in range(len(names))]


def _task(folder: Path, name: str, count: int, labels: dict[str, torch.Tensor], metric: str) -> dict[str, object]:
    files = {}
    for split, values in labels.items():
        files[split] = str(folder / f"{name}-{split}.csv")
        Path(files[split]).parent.mkdir(parents=True, exist_ok=True)
        with open(files[split], "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([f"{split} {i}: {TEXT}", label] for i, label in enumerate(values.tolist()))
    names = [f"<{name}> kind {i}" for i in range(count)]
    return {"name": name, "source": {"csv": files}, "labels": names, "metric": metric}


def _columns(
    task: str, split: str, names: list[str], count: int, labels: torch.Tensor, generator: torch.Generator
) -> Columns:
    truth = torch.nn.functional.one_hot(labels, count).float()
    origin = torch.randn(len(labels), count, generator=generator) + 0.9 * truth
    columns = 0.7 * torch.randn(len(names), len(labels), count, generator=generator)
    columns[names.index(task)] += 3.5 * truth
    return Columns(task, split, tuple(names), (), origin, columns, labels, torch.arange(len(labels)), "")


def _scores(path: Path, names: list[str]) -> None:
    subsets = [names, names[:2], names[1:4]] if len(names) > 3 else [names]
    rows = []
    for subset in subsets:
        n = len(subset)
        found = {"average": [1.0] * n, "task_arithmetic": [0.5] * n, "ties": [1.0] * n, "lorahub": weights(subset)}
        for method, values in found.items():
            row = dict.fromkeys(COLUMNS, "") | {"mode": "tangent", "method": method, "space": "delta"}
            row |= {"subset": "+".join(subset), "n_tasks": n, "in_subset": "true", "selection": "validation"}
            row |= {"coefficients": json.dumps({"weights": values}), "task": subset[0], "split": "test"}
            rows.append(row | {"metric": "accuracy", "score": 0.5})
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
