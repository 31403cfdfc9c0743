"""What each of two processes runs: the same call as in one. Arguments: model, data, output folder."""

import json
import os
import sys
from pathlib import Path

from tangora.config.recipe import BaseConfig, FinetuneConfig, LoraSettings, Source, TaskConfig, TrainingSettings
from tangora.modes.finetuning import finetune
from tangora.tasks import load_base, load_task


def main(model: str, data: str, out: str) -> None:
    files = {split: f"{data}/{split}.parquet" for split in ("train", "test")}
    base = load_base(BaseConfig(family="text-zero-shot", model=model))
    labels = ["red", "green", "blue"]
    task = load_task(TaskConfig(name="colors", source=Source(parquet=files), labels=labels), base, 0)
    training = TrainingSettings(steps=4, batch_size=4, evaluate_every=2, early_stopping=3, checkpoint_every=2)
    config = FinetuneConfig(lora=LoraSettings(target_modules=["query", "dense"]), training=training)
    adapter = finetune(base, task, config, out=Path(out, "out"), scratch=Path(out, "scratch"))
    linear = finetune(base, task, config.model_copy(update={"linearize": "module"}))
    tangent = finetune(base, task, config.model_copy(update={"linearize": "model"}))
    found = {
        "world": int(os.environ["WORLD_SIZE"]),
        "norm": adapter.task_vector.norm(),
        "l-lora norm": linear.task_vector.norm(),
        "tangent norm": tangent.task_vector.norm(),
        "seen": (Path(out, "out") / "tangora.json").exists(),
    }
    Path(out, f"rank{os.environ['RANK']}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
