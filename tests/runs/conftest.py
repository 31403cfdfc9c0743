"""A finished run of two tasks and one mode, made once for the tests of jobs and executors."""

from __future__ import annotations

import json
import random
import shutil

import pytest
from datasets import Dataset

import tiny


@pytest.fixture(scope="session")
def short_recipe(tmp_path_factory):
    from tangora.testing._tiny_run import tiny_recipe

    return tiny_recipe(tmp_path_factory.mktemp("short"))


@pytest.fixture(scope="session")
def short_run(short_recipe, tmp_path_factory):
    """Leave it as it is; `short_copy` is for changes."""
    import tangora

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tangora.report.build", lambda run: (run / "report.html").write_text("drawn elsewhere"))
        return tangora.run(short_recipe, tmp_path_factory.mktemp("runs") / "short", progress=None)


@pytest.fixture
def short_copy(short_run, tmp_path):
    return shutil.copytree(short_run, tmp_path / "copy")


@pytest.fixture(scope="session")
def two_of_text7(tmp_path_factory):
    """The folder of sst2 and trec6 as recipes on text7 read it, with a few made rows."""
    root, draw = tmp_path_factory.mktemp("text7"), random.Random(0)
    for task, labels in {"sst2": ["bad", "good"], "trec6": ["red", "green", "blue"]}.items():
        (root / task).mkdir()
        for split, count in (("train", 40), ("test", 12)):
            rows = [draw.randrange(len(labels)) for _ in range(count)]
            texts = [f"this is {labels[row]} {draw.choice(tiny.WORDS)} {number}" for number, row in enumerate(rows)]
            Dataset.from_dict({"text": texts, "label": rows}).to_parquet(str(root / task / f"{split}.parquet"))
        (root / task / "info.json").write_text(json.dumps({"labels": labels}))
    return root
