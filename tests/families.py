"""Adapters of every family, trained in seconds, with the rows of their test splits as a user has them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import tangora
import tiny
from plugins import EXAMPLES
from tangora.config.settings import FinetuneConfig
from tangora.support.seams import FAMILIES
from tangora.tasks import Base, Task

HEAD = "linear-head"
MODES = {
    "lora": ("adapter", "none", True),
    "l-lora": ("adapter", "module", True),
    "l-lora-moved": ("adapter", "module", "orthogonal"),  # B₀ is not zero
    "tangent": ("adapter", "model", True),
    "tangent-moved": ("adapter", "model", "orthogonal"),
    "full": ("full", "none", True),
    "full-tangent": ("full", "model", True),
}


@dataclass(frozen=True)
class Case:
    """A family's base and task, rows of the task's test split, and the layers that are adapted."""

    base: Base
    task: Task
    rows: list[Any]
    targets: list[str]

    def config(self, mode: str, steps: int = 4) -> FinetuneConfig:
        """A short training in a mode."""
        train, linearize, init = MODES[mode]
        rate = 2e-3 if train == "full" else 2e-2
        lora = {"r": 2, "target_modules": self.targets, "init": init}
        training = {"steps": steps, "batch_size": 8, "learning_rate": rate, "checkpoint_every": None}
        return FinetuneConfig(mode=mode, train=train, linearize=linearize, lora=lora, training=training)

    def trained(self, mode: str, folder: Path) -> Path:
        """Train into a folder, and return it."""
        tangora.finetune(self.base, self.task, self.config(mode), out=folder, progress=False)
        return folder


@contextlib.contextmanager
def linear_head() -> Iterator[None]:
    """The family of examples/plugins/family, registered for the length of the block."""
    name = "tangora_linear_head"
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / "family" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    FAMILIES.register(HEAD, module.FAMILY)
    try:
        yield
    finally:
        FAMILIES.unregister(HEAD)
        del sys.modules[name]


def texts(folder: Path) -> list[str]:
    """The texts of `tiny.texts`."""
    from pyarrow import parquet

    return parquet.read_table(folder / "test.parquet")["text"].to_pylist()


def images(folder: Path) -> list[np.ndarray]:
    """The images of `tiny.images`."""
    return list(np.load(folder / "test.npz")["images"])


def language_case(llama: Path, folder: Path) -> Case:
    """Small sums for a decoder."""
    tiny.sums(folder)
    base = tangora.load_base(llama, family="causal-lm", max_length=64, max_new_tokens=4)
    task = tangora.load_task("sums", base, {split: folder / f"{split}.jsonl" for split in ("train", "test")})
    lines = (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    return Case(base, task, [json.loads(line)["prompt"] for line in lines], ["q_proj", "v_proj"])


def head_case(bert: Path, data: Path) -> Case:
    """A task with a trained head, while `linear_head` is registered."""
    base = tangora.load_base(bert, family=HEAD, pooling="cls", max_length=16)
    files = {split: data / f"{split}.parquet" for split in ("train", "test")}
    task = tangora.load_task("grades", base, files, labels=["low", "middle", "high"])
    return Case(base, task, texts(data), ["query", "dense"])
