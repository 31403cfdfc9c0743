"""The recipe of a run in seconds: three tasks, three modes, five fusions."""

from __future__ import annotations


def recipe_for(model, data):
    files = {"train": f"{data}/train.parquet", "test": f"{data}/test.parquet"}
    task = {"source": {"parquet": files}, "labels": ["red", "green", "blue"]}
    return {
        "name": "tiny",
        "base": {"family": "text-zero-shot", "model": str(model)},
        "tasks": [
            {"name": "plain", **task},
            {"name": "good", **task, "templates": ["good {}"]},
            {"name": "f1", **task, "templates": ["a photo of {}", "{}"], "metric": "macro_f1"},
        ],
        "lora": {"r": 2, "target_modules": ["query", "value"]},
        "training": {"steps": 4, "batch_size": 8, "learning_rate": 0.02, "checkpoint_every": 2},
        "modes": {"full": {"train": "full"}, "lora": {}, "l-lora": {"linearize": "module"}},
        "fusion": {
            "subsets": {"sizes": [2, 3]},
            "methods": [
                {"method": "average"},
                {"method": "task_arithmetic", "weights": [0.0, 0.5, 1.0]},
                {"method": "task_arithmetic", "weights": [0.5, 1.0], "spaces": ["factors"], "modes": ["lora"]},
                {"method": "ties", "weights": [0.5, 1.0], "parameters": {"density": [0.5]}},
                {"method": "task_arithmetic", "search": "lorahub", "budget": 3, "sizes": [3]},
            ],
            "selection": ["validation", "oracle"],
        },
        "evaluation": {"bootstrap": 100},
    }
