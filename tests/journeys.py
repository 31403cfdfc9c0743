"""Three adapters of a tiny language model that do one task each, and files of prompts, for the page on tuning."""

from __future__ import annotations

import json
from pathlib import Path

import tiny

WORDS = {"sums": "7", "caps": "B", "ends": "z"}


def prompts(file: Path, task: str, rows: int = 40) -> Path:
    """Write prompts of one task: a letter tells the task, and its word is the answer."""
    file.parent.mkdir(parents=True, exist_ok=True)
    listed = [{"question": f"{task[0]}{number}?", "answer": WORDS[task]} for number in range(rows)]
    file.write_text("".join(json.dumps(row) + "\n" for row in listed))
    return file


def adapters(folder: Path, steps: int = 20) -> Path:
    """Fill a folder like a reader's: ``llama``, ``rows/TASK.jsonl``, and adapters of different ranks and layers."""
    import tangora

    tiny.llama(folder / "llama")
    base = tangora.load_base(folder / "llama", family="causal-lm", max_length=32, max_new_tokens=3)
    shapes = {
        "sums": (2, "all-linear"),
        "caps": (4, ["q_proj", "v_proj", "o_proj"]),
        "ends": (3, ["up_proj", "down_proj"]),
    }
    for task, (rank, targets) in shapes.items():
        file = prompts(folder / "rows" / f"{task}.jsonl", task)
        files = {"train": str(file), "test": str(prompts(folder / "other" / f"{task}.jsonl", task, 4))}
        loaded = tangora.load_task(task, base, {**files}, prompt="{question}", target="{answer}")
        config = tangora.FinetuneConfig(
            lora={"r": rank, "target_modules": targets},
            training={"steps": steps, "batch_size": 8, "learning_rate": 0.02},
        )
        tangora.finetune(base, loaded, config, out=folder / "adapters" / task)
    return folder
