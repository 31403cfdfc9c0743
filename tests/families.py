"""Adapters of every family, trained in seconds, with the rows of their test splits as a user has them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

import tangora
from plugins import EXAMPLES
from tangora.config.settings import FinetuneConfig
from tangora.support.seams import FAMILIES
from tangora.tasks import Base, Task
from tiny import COLORS

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


class Families(dict[str, Case]):
    """Kind -> case, each loaded on first use.

    Args:
        fixture: the value of a fixture by its name.
    """

    def __init__(self, fixture: Callable[[str], Any]) -> None:
        super().__init__()
        self.fixture = fixture

    def __missing__(self, kind: str) -> Case:
        self[kind] = getattr(self, f"_{kind}")()
        return self[kind]

    def _text(self) -> Case:
        rows = parquet.read_table(self.fixture("text_data") / "test.parquet")["text"].to_pylist()
        return Case(self.fixture("text_base"), self.fixture("text_task"), rows, ["query", "dense"])

    def _image(self) -> Case:
        rows = list(np.load(self.fixture("image_data") / "test.npz")["images"])
        return Case(self.fixture("image_base"), self.fixture("image_task"), rows, ["q_proj", "fc1"])

    def _answer(self) -> Case:
        return Case(self.fixture("answer_base"), self.fixture("answer_task"), self["text"].rows, ["q", "wo"])

    def _head(self) -> Case:
        base = tangora.load_base(self.fixture("tiny_bert"), family=HEAD, pooling="cls", max_length=16)
        task = tangora.load_task("grades", base, self._files("text_data", "parquet"), labels=["low", "middle", "high"])
        return Case(base, task, self["text"].rows, ["query", "dense"])

    def _language(self) -> Case:
        base = tangora.load_base(self.fixture("tiny_llama"), family="causal-lm", max_length=64, max_new_tokens=4)
        task = tangora.load_task("sums", base, self._files("sum_data", "jsonl"))
        return Case(base, task, self._rows("sum_data", "prompt"), ["q_proj", "v_proj"])

    def _pairs(self) -> Case:
        return self._classifier(["text", "pair"], text_pair="pair", label="same")

    def _multi(self) -> Case:
        return self._classifier(["text"], problem="multi", label="colors", threshold=0.4)

    def _regression(self) -> Case:
        return self._classifier(["text"], problem="regression", label="count")

    def _tags(self) -> Case:
        return self._classifier(["tokens"], "token-classification")

    def _picture(self) -> Case:
        base = tangora.load_base(self.fixture("tiny_vit"), family="image-classification")
        named = {"image": "images", "label": "labels", "labels": ["red", "green", "blue"]}
        task = tangora.load_task("colors", base, self._files("image_data", "npz"), **named)
        return Case(base, task, self["image"].rows, ["q_proj", "v_proj"])

    def _segments(self) -> Case:
        return self._dense("classes", labels=["background", *COLORS])

    def _marks(self) -> Case:
        return self._dense("marks", problem="binary")

    def _depths(self) -> Case:
        return self._dense("numbers", problem="regression")

    def _dense(self, label: str, **settings: Any) -> Case:
        base = tangora.load_base(self.fixture("tiny_swin"), family="image-dense", width=8)
        task = tangora.load_task("scenes", base, self._files("scene_data", "npz"), label=label, **settings)
        return Case(base, task, list(np.load(self.fixture("scene_data") / "test.npz")["image"]), ["q_proj", "fc1"])

    def _classifier(self, columns: list[str], family: str = "text-classification", **settings: Any) -> Case:
        base = tangora.load_base(self.fixture("tiny_bert"), family=family, max_length=32)
        task = tangora.load_task("several", base, self._files("several_data", "jsonl"), **settings)
        return Case(base, task, self._rows("several_data", *columns), ["query", "value"])

    def _files(self, folder: str, suffix: str) -> dict[str, Path]:
        return {split: self.fixture(folder) / f"{split}.{suffix}" for split in ("train", "test")}

    def _rows(self, folder: str, *columns: str) -> list[Any]:
        lines = (self.fixture(folder) / "test.jsonl").read_text(encoding="utf-8").splitlines()
        rows = [{name: json.loads(line)[name] for name in columns} for line in lines]
        return rows if len(columns) > 1 else [row[columns[0]] for row in rows]


def answers_of(values: list[Any], task: Task) -> list[Any]:
    """Predictions of an evaluation as `tangora.predict` gives them."""
    if task.form.kind == "classes":
        return [task.labels[value] for value in values]
    return [[task.labels[n] for n in value] for value in values] if task.form.kind == "labels" else list(values)
