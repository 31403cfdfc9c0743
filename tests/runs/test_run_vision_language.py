"""The recipe bench-vl, whole, with few steps and rows: offline, on towers that the run makes."""

from __future__ import annotations

import csv
import json

import pytest

import tangora
from tangora.config.recipe import load_recipe
from tangora.progress import Progress
from tangora.quickstart import cache
from tangora.quickstart.tiny_decoder import DecoderSettings
from tangora.quickstart.training import PretrainingSettings

FEW = ["training.steps=2", "training.evaluate_every=1", "training.batch_size=4", "evaluation.bootstrap=100"]
FEW += [f"tasks.{i}.limit={{train: 8, validation: 4, test: 5}}" for i in range(5)]
FEW += ["fusion.subsets.sizes=[2]", "fusion.subsets.per_size=1"]


class Heard(Progress):
    """Notes what begins."""

    def __init__(self):
        super().__init__()
        self.labels = []

    def begin(self, label, total):
        self.labels.append((label, total))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    home, heard = tmp_path_factory.mktemp("vl"), Heard()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TANGORA_CACHE", str(home / "cache"))
        patch.setattr(cache, "PretrainingSettings", lambda: PretrainingSettings(16, 2, 16, 8, steps=2))
        patch.setattr(cache, "DecoderSettings", lambda: DecoderSettings(16, 4, 2, steps=3, batch_size=4))
        out = tangora.run(load_recipe("bench-vl", FEW), home / "run", progress=heard)
        yield out, heard.labels


def test_both_towers_are_made_first(finished):
    assert finished[1][:2] == [("pretrain the built-in model", 3), ("pretrain the built-in model", 2)]


def test_every_mode_and_method_is_scored_on_every_task(finished):
    out, _ = finished
    with (out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    tasks = {"digits", "counts", "faces", "textures", "captions"}
    experts = {(row["mode"], row["task"]) for row in rows if row["method"] == "expert" and row["split"] == "test"}
    assert experts >= {(mode, task) for mode in ("ep-alm", "ep-alm-shared", "lora") for task in tasks}
    assert {row["method"] for row in rows if row["mode"] == "ep-alm"} >= {"expert", "average", "task_arithmetic"}
    assert {row["metric"] for row in rows if row["task"] == "captions"} >= {"exact_match", "rouge_l"}


def test_report_and_tables_show_them(finished):
    out, _ = finished
    summary = json.loads((out / "summary.json").read_text())
    assert {row["mode"] for row in summary["rows"]} == {"ep-alm", "ep-alm-shared", "lora"}
    page = (out / "report.html").read_text()
    for shown in ("ep-alm-shared", "textures", "rouge_l"):
        assert shown in page


def test_an_expert_answers_from_its_own_files(finished, monkeypatch):
    """Base, tower, prompt and connectors: from the adapter's folder alone; and its card says how."""
    out, _ = finished
    folder = out / "adapters" / "ep-alm" / "faces"
    rows = tangora.quickstart.questions.load("face-questions")["test"]
    asked = [{"image": image, "question": "is this a face?"} for image in rows["image"][:3]]
    recipe = load_recipe("bench-vl", FEW)
    base = tangora.load_base(recipe.base)
    task = tangora.load_task(recipe.tasks[2], base, seed=recipe.seed)
    expected = tangora.predict(folder, base, task, asked)
    assert tangora.predictor(folder)(asked).answers == expected.answers
    card = (folder / "README.md").read_text()
    assert '"image": "photo.jpg"' in card.replace("'", '"') or "image" in card
    assert "tangora.load_model(" in card


def test_a_lora_of_the_decoder_is_loaded_by_the_code_on_its_card(finished):
    card = (finished[0] / "adapters" / "lora" / "faces" / "README.md").read_text()
    assert (
        'tangora.load_base("builtin:decoder", family="vision-language", vision="builtin:quickstart").backbone' in card
    )
    import torch

    model = tangora.load_model(finished[0] / "adapters" / "lora" / "faces")
    ids = torch.tensor([[1, 5]])
    assert model(input_ids=ids).logits.shape[:2] == (1, 2)
