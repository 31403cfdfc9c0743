"""The blocks of docs/classifiers.md run, in order, in a folder like the reader's."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import peft
import pytest
import torch
import yaml
from transformers import BertForSequenceClassification

import tiny
from tangora.config.recipe import Recipe
from tangora.support.validation import validate

PAGE = (Path(__file__).parents[2] / "docs" / "classifiers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def in_peft(bert, folder, seed):
    """An adapter of a classifier of two classes, as stock peft saves it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = BertForSequenceClassification.from_pretrained(bert, num_labels=2)
        settings = {"r": 2, "target_modules": ["query"], "modules_to_save": ["classifier"], "task_type": "SEQ_CLS"}
        wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
        draw = torch.Generator().manual_seed(seed)
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.data = 0.2 * torch.randn(parameter.shape, generator=draw)
        wrapped.save_pretrained(folder)


@pytest.fixture
def desk(tmp_path, monkeypatch, tiny_bert, tiny_vit, image_data):
    """A folder with the models, rows and adapters that the page names."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bert, "bert")
    shutil.copytree(tiny_vit, "vit")
    tiny.desk(tmp_path)
    for name in ("colors", "shades", "tones"):
        shutil.copytree(image_data, name, ignore=shutil.ignore_patterns("*.npz"))
    for seed, name in enumerate(("mail", "news")):
        in_peft("bert", f"peft/{name}", seed)
    model = BertForSequenceClassification.from_pretrained("bert", num_labels=2)
    model.config.id2label = {0: "POSITIVE", 1: "NEGATIVE"}
    model.config.label2id = {"POSITIVE": 0, "NEGATIVE": 1}
    model.save_pretrained("sentiment")
    tiny.pieces(tmp_path / "sentiment")


def test_the_journeys_of_the_page(desk, capsys):
    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    printed = capsys.readouterr().out
    assert re.search(r"Scores\(test, topic [\d.]+, themes [\d.]+, stars -?[\d.]+", printed)
    assert re.search(r"Scores\(test, colors [\d.]+", printed)
    assert re.search(r"^\['O', 'O', .*\]$", printed, re.MULTILINE), "a tag for each of three words"
    assert set(names["answers"]) <= {"weather", "fire"}
    assert names["themes"].probabilities.shape == (1, 3)
    assert Path("one/adapter_model.safetensors").is_file()
    assert len(list(Path("one/heads").glob("*.safetensors"))) == 3
    assert len(BLOCKS) == 6


def test_the_recipe_of_the_page_is_one():
    (part,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    recipe = validate(Recipe, {"name": "page", **yaml.safe_load(part)}, "page")
    assert [task.metric for task in recipe.tasks] == ["accuracy", "micro_f1"]
