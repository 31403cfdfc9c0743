from __future__ import annotations

import numpy as np
import pytest

from tangora.config.recipe import BaseConfig, TaskConfig
from tangora.tasks import Split, TaskModel, load_base, load_task, predict, score


@pytest.mark.parametrize(("name", "expected"), [("sst2", 0.707), ("trec6", 0.447), ("snips", 0.813)])
def test_zero_shot_accuracy_of_the_sentence_encoder(name, expected, real_data, minilm):
    base = load_base(BaseConfig(family="text-zero-shot", model=str(minilm), max_length=32))
    folder = real_data / "text" / name
    files = {split: str(folder / f"{split}.parquet") for split in ("train", "test")}
    task = load_task(
        TaskConfig(name=name, source={"parquet": files}, labels_from=str(folder / "info.json"), limit={"train": 20}),
        base,
        seed=0,
    )
    test = task.splits["test"]
    chosen = np.random.RandomState(0).choice(len(test), 300, replace=False)
    some = Split({"input_ids": [test.inputs["input_ids"][i] for i in chosen]}, [test.targets[i] for i in chosen])
    predictions = predict(TaskModel(base.backbone, task, base), some, 64)
    assert score("accuracy", predictions.values, some.targets) == pytest.approx(expected, abs=0.0017)
