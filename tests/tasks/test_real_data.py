from __future__ import annotations

import pytest
import torch

from tangora.recipe import BaseConfig, TaskConfig
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
    first = Split({"input_ids": test.inputs["input_ids"][:300]}, test.targets[:300])
    torch.set_num_threads(2)
    predictions = predict(TaskModel(base.backbone, task, base), first, 64)
    assert score("accuracy", predictions.values, first.targets) == pytest.approx(expected, abs=0.0017)
